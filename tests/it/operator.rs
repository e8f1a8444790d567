//! What an operator sees and does: every webhook accounted for, dead letters looked at and decided about.

use serde_json::Value;
use shared::{codec::envelope::DedupeKey, partition::Partition, stream};
use std::{
    process::Output,
    sync::{Arc, Mutex},
    time::Duration,
};
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{App, SMALL, SOON, Size, World, agent_id},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

fn lines(printed: &str) -> Vec<Value> {
    printed.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn printed(ran: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (text(&ran.stdout), text(&ran.stderr))
}

async fn handle(world: &World, app: &App, count: usize) -> Vec<DedupeKey> {
    let mut keys = Vec::new();
    for n in 0..count {
        let webhook = Webhook::command(&world.slack, app, &format!("C{n}"), "U1", "/lobu", "help");
        world.send(app, &webhook).await.expect("an answer");
        world.handled(&webhook.dedupe).await;
        keys.push(webhook.dedupe);
    }
    keys
}

/// Puts `count` messages that are no envelopes into the stream and waits until they are dead.
async fn die(world: &World, app: &App, count: usize) -> Vec<i64> {
    let js = async_nats::jetstream::new(world.client().clone());
    let subject = stream::subject(Partition::of(app.connection, Some("C1")), app.connection);
    for n in 0..count {
        let body = format!("no envelope {n}").into();
        js.publish(subject.clone(), body).await.expect("sent").await.expect("stored");
    }
    until("all are dead", SOON, async || {
        let dead = world.dead_letters().await.ok()?;
        (dead.len() == count).then(|| dead.iter().map(|one| one.id).collect())
    })
    .await
}

fn sum(world: &World) -> Value {
    let lines = lines(&world.tidegate(&["ledger", "verify", "--json"]).expect("none is missing"));
    lines.last().expect("a sum").clone()
}

#[tokio::test]
async fn the_ledger_of_a_healthy_run_counts_each_and_misses_none() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    handle(&world, &app, 5).await;
    die(&world, &app, 2).await;
    let expected = serde_json::json!({
        "partitions": 64, "committed": 7, "stored": 7, "purged": 0, "expired": 0, "missing": 0,
    });
    assert_eq!(sum(&world), expected);
    world.tidegate(&["dead-letters", "delete", "--all", "--yes"]).expect("deleted");
    assert_eq!(sum(&world), expected, "what was deleted was committed");
    let (table, _) = printed(&world.try_tidegate(&["ledger", "verify"]).expect("it runs"));
    assert_eq!(table, "64 partitions: 7 committed, 0 no longer in the stream, 0 missing\n");
}

/// A cursor that moved past a webhook nobody committed.
#[tokio::test]
async fn the_ledger_names_the_partition_that_misses_a_webhook_and_fails() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let keys = handle(&world, &app, 4).await;
    let handled = world.look(&keys[2]).await.expect("it is done");
    sqlx::query("update partition_cursors set messages = messages - 1 where partition = $1")
        .bind(handled.partition)
        .execute(&world.pool)
        .await
        .expect("one is not counted");
    let ran = world.try_tidegate(&["ledger", "verify", "--json"]).expect("it runs");
    let (out, error) = printed(&ran);
    assert_eq!(ran.status.code(), Some(1), "{error}");
    let found = lines(&out);
    assert_eq!((found.len(), &found[0]["partition"]), (2, &handled.partition.into()));
    assert_eq!((&found[0]["missing"], &found[1]["missing"]), (&1.into(), &1.into()));
    assert!(error.contains("missing webhooks: 1"), "{error}");
}

#[tokio::test]
async fn a_webhook_that_no_worker_has_reached_is_lag_and_not_missing() {
    let mut world = World::without_processes(SERVERS).await.expect("servers");
    world.start_ingest().await.expect("an ingest");
    let app = world.connect().await.expect("a connection");
    let webhook = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help");
    world.send(&app, &webhook).await.expect("an answer");
    assert_eq!((&sum(&world)["committed"], &sum(&world)["missing"]), (&0.into(), &0.into()));
    let partitions = lines(&world.tidegate(&["partitions", "--json"]).expect("printed"));
    let behind: Vec<_> = partitions.iter().filter(|line| line["lag"] != 0).collect();
    let partition = Partition::of(app.connection, Some("C1")).number();
    assert_eq!((behind.len(), &behind[0]["partition"]), (1, &partition.into()));
    assert_eq!((&behind[0]["lag"], &behind[0]["held"]), (&1.into(), &false.into()));
}

#[tokio::test]
async fn partitions_shows_who_owns_each_of_the_64() {
    let world = World::start(SMALL).await.expect("a world");
    let shown = lines(&world.tidegate(&["partitions", "--json"]).expect("printed"));
    assert_eq!(shown.len(), 64);
    for line in &shown {
        assert_eq!((&line["owner"], &line["held"]), (&"worker-1".into(), &true.into()), "{line}");
        assert!(line["lease_ms"].as_i64().is_some_and(|ms| ms > 0), "{line}");
    }
    let table = world.tidegate(&["partitions"]).expect("printed");
    assert!(table.contains("64 partitions: 64 held, 0 free; lag 0"), "{table}");
}

#[tokio::test]
async fn deliveries_lists_conversations_that_wait_and_says_why() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    world.agent.break_down(true);
    for text in ["one", "two"] {
        let webhook = Webhook::message(&world.slack, &app, "D1", "U1", text);
        assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200);
    }
    let shown = until("both wait", SOON, async || {
        let ran = world.try_tidegate(&["deliveries", "list", "--json"]).ok()?;
        let shown = lines(&printed(&ran).0);
        let tried = shown.first().is_some_and(|one| one["waiting"] == 2 && one["attempts"] != 0);
        tried.then_some(shown)
    })
    .await;
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0]["connection"], app.connection.to_string());
    let lane = shown[0]["lane"].as_str().expect("a lane");
    assert!(world.tidegate(&["deliveries", "list"]).expect("printed").contains(lane));
    let none = world.try_tidegate(&["deliveries", "list", "--agent", "org/nobody"]);
    assert_eq!(none.expect("it runs").status.code(), Some(3), "nothing matches");

    let target = format!("{}/{lane}", app.connection);
    until("the first is skipped", SOON, async || {
        // While it runs it is not skipped.
        world.tidegate(&["deliveries", "skip", &target]).ok()
    })
    .await;
    world.agent.break_down(false);
    world.slack.told("the second is answered", |told| told.text() == "I heard: two").await;
    let heard = world.slack.receipts().iter().any(|told| told.text() == "I heard: one");
    assert!(!heard, "what was skipped is not answered");
}

#[tokio::test]
async fn the_dead_are_listed_by_connection_and_shown_with_their_bodies_only_when_asked() {
    let world = World::start(SMALL).await.expect("a world");
    let (app, other) = (world.connect().await, world.connect().await);
    let (app, other) = (app.expect("a connection"), other.expect("a connection"));
    let id = die(&world, &app, 1).await[0].to_string();
    let of = |app: &App| {
        let connection = app.connection.to_string();
        {
            let list = ["dead-letters", "list", "--connection", &connection, "--json"];
            lines(&printed(&world.try_tidegate(&list).expect("it runs")).0)
        }
    };
    assert_eq!((of(&app).len(), of(&other).len()), (1, 0));
    let shown = world.tidegate(&["dead-letters", "show", &id]).expect("printed");
    assert!(shown.contains("undecodable envelope: it has no headers"), "{shown}");
    assert!(!shown.contains("no envelope 0"), "{shown}");
    let shown = world.tidegate(&["dead-letters", "show", &id, "--body"]).expect("printed");
    assert!(shown.contains("no envelope 0"), "{shown}");
    let shown =
        lines(&world.tidegate(&["dead-letters", "show", &id, "--body", "--json"]).expect("ok"));
    assert_eq!(shown[0]["body"], "no envelope 0");
    let (_, error) =
        printed(&world.try_tidegate(&["dead-letters", "show", "99"]).expect("it runs"));
    assert_eq!(error, "dead letter 99 not found; list them with tidegate dead-letters list\n");
}

/// A dead letter of dispatch is a delivery again, behind what its conversation got meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_redriven_is_delivered_behind_what_its_conversation_got_meanwhile() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let say = async |text: &str| {
        let webhook = Webhook::message(&world.slack, &app, "D1", "U1", text);
        assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200);
        webhook
    };
    let first = say("poison").await;
    let dead = until("it is dead", Duration::from_secs(60), async || {
        world.dead_letters().await.ok()?.first().map(|one| (one.id.to_string(), one.attempts))
    })
    .await;
    assert_eq!((dead.1, world.handled(&first.dedupe).await.outcome), (3, "dead_letter".into()));
    let second = say("second").await;
    assert_eq!(world.handled(&second.dedupe).await.outcome, "completed");
    let ran = world.try_tidegate(&["dead-letters", "redrive", "--all"]).expect("it runs");
    assert_eq!(printed(&ran).1, "would redrive: 1 dead letters; pass --yes to do it\n");
    let redriven = world.tidegate(&["dead-letters", "redrive", &dead.0]);
    assert_eq!(redriven.expect("redriven"), "redriven: 1\n");
    until("it is dead again", Duration::from_secs(60), async || {
        let again = world.dead_letters().await.ok()?;
        again.first().filter(|one| one.id.to_string() != dead.0).map(|_| ())
    })
    .await;
    let asked = world.agent.asked().iter().filter(|a| a.question["text"] == "poison").count();
    assert_eq!(asked, 6, "three attempts each time");
    let ran = world.try_tidegate(&["dead-letters", "redrive", &dead.0]).expect("it runs");
    assert!(
        printed(&ran).1.ends_with("list them with tidegate dead-letters list\n"),
        "{}",
        printed(&ran).1
    );
    assert_eq!(ran.status.code(), Some(3));
}

#[tokio::test]
async fn deleting_says_how_many_and_does_it_only_when_told_so() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let ids = die(&world, &app, 3).await;
    let ran = world.try_tidegate(&["dead-letters", "delete", "--all"]).expect("it runs");
    assert_eq!(printed(&ran).1, "would delete permanently: 3 dead letters; pass --yes to do it\n");
    assert_eq!(
        (ran.status.code(), world.dead_letters().await.expect("a list").len()),
        (Some(1), 3)
    );
    let one = ids[0].to_string();
    let said = world.tidegate(&["dead-letters", "delete", &one, "--yes"]).expect("discarded");
    assert_eq!(said, "deleted: 1\n");
    let reason = ["dead-letters", "delete", "--all", "--reason", "another reason", "--yes"];
    assert_eq!(world.try_tidegate(&reason).expect("it runs").status.code(), Some(3), "none");
    let connection = app.connection.to_string();
    let rest = ["dead-letters", "delete", "--all", "--connection", &connection, "--yes"];
    assert_eq!(world.tidegate(&rest).expect("discarded"), "deleted: 2\n");
    let ran = world.try_tidegate(&["dead-letters", "delete", "--yes"]).expect("it runs");
    assert!(!ran.status.success(), "neither ids nor --all");
}

#[tokio::test]
async fn tail_prints_what_is_stored_and_nothing_of_another_connection_or_of_bodies() {
    let world = World::start(SMALL).await.expect("a world");
    let (app, other) = (world.connect().await, world.connect().await);
    let (app, other) = (app.expect("a connection"), other.expect("a connection"));
    let world = Arc::new(world);
    let tail = tokio::task::spawn_blocking({
        let (world, connection) = (Arc::clone(&world), app.connection.to_string());
        move || world.tidegate(&["tail", "--connection", &connection, "--count", "2", "--json"])
    });
    // It begins with what comes after its start, whenever that is: so there is more until it has enough.
    let sent = Mutex::new(Vec::new());
    until("it has printed two", SOON, async || {
        for app in [&other, &app] {
            let webhook = Webhook::command(&world.slack, app, "C1", "U1", "/lobu", "help me");
            world.send(app, &webhook).await.ok()?;
            sent.lock().ok()?.push(webhook.dedupe);
        }
        tail.is_finished().then_some(())
    })
    .await;
    let printed = tail.await.expect("it ended").expect("it ended well");
    assert!(!printed.contains("help"), "{printed}");
    let (shown, sent) = (lines(&printed), sent.into_inner().expect("nobody panicked"));
    assert_eq!(shown.len(), 2);
    for line in shown {
        assert_eq!(line["connection"], app.connection.to_string());
        assert_eq!(
            (&line["kind"], line["lane"].as_str().map(str::len)),
            (&"command".into(), Some(16))
        );
        assert!(sent.iter().any(|key| line["dedup_key"] == key.as_str()), "{line}");
    }
}
