//! What an operator sees and does: every webhook accounted for, the dead looked at and decided about.

use serde_json::Value;
use shared::{
    codec::envelope::DedupeKey,
    partition::{Conversation, Lane, Partition},
    store::{Owner, Spilled},
    stream,
    types::ConnectionId,
};
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
        let dead = world.store.dead(100).await.ok()?;
        (dead.len() == count).then(|| dead.iter().map(|one| one.id).collect())
    })
    .await
}

#[tokio::test]
async fn an_audit_of_a_healthy_run_names_nothing_and_counts_each() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    handle(&world, &app, 5).await;
    die(&world, &app, 2).await;
    let counts = lines(&world.tidegate(&["audit", "--since", "1h", "--json"]).expect("none lost"));
    let expected = serde_json::json!({
        "done": 5, "parked": 0, "dead": 2, "in_flight": 0, "missing": 0,
    });
    assert_eq!(counts, [expected]);
    world.tidegate(&["dead", "discard", "--all", "--yes"]).expect("discarded");
    let after = lines(&world.tidegate(&["audit", "--since", "1h", "--json"]).expect("none lost"));
    assert_eq!(after[0]["done"], 7, "what was discarded is accounted for");

    let middle: String = sqlx::query_scalar(
        "select to_char(max(at) at time zone 'utc', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') from seen where outcome = 'done'",
    )
    .fetch_one(&world.pool)
    .await
    .expect("a time");
    let later =
        lines(&world.tidegate(&["audit", "--since", &middle, "--json"]).expect("none lost"));
    assert_eq!(later[0]["done"], 2, "what was stored after the first five: {later:?}");
    let future = ["audit", "--since", "2999-01-01T00:00:00Z"];
    let (_, error) = printed(&world.try_tidegate(&future).expect("it runs"));
    assert!(error.contains("in the future"), "{error}");
    let (_, error) = printed(&world.try_tidegate(&["audit", "--since", "3d"]).expect("it runs"));
    assert!(error.contains("48h"), "{error}");
    let (_, error) = printed(&world.try_tidegate(&["audit", "--since", "soon"]).expect("it runs"));
    assert!(error.contains("--since is malformed"), "{error}");
}

#[tokio::test]
async fn an_audit_names_exactly_the_webhook_that_is_nowhere_and_fails() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let keys = handle(&world, &app, 4).await;
    let handled = world.look(&keys[2]).await.expect("it is done");
    until("the cursor is past it", SOON, async || {
        let states = world.store.partition_states().await.ok()?;
        let state = states.into_iter().find(|state| state.partition == handled.partition)?;
        (state.cursor >= handled.sequence).then_some(())
    })
    .await;
    sqlx::query("delete from seen where dedupe_key = $1")
        .bind(keys[2].as_str())
        .execute(&world.pool)
        .await
        .expect("it is forgotten");

    let ran = world.try_tidegate(&["audit", "--since", "1h", "--json"]).expect("it runs");
    let (out, error) = printed(&ran);
    assert_eq!(ran.status.code(), Some(1), "{error}");
    let expected = serde_json::json!({
        "connection": app.connection, "sequence": handled.sequence, "dedupe": keys[2].as_str(),
    });
    let found = lines(&out);
    assert_eq!(found[0], expected);
    assert_eq!((found.len(), &found[1]["missing"], &found[1]["done"]), (2, &1.into(), &3.into()));
    let (table, _) = printed(&world.try_tidegate(&["audit", "--since", "1h"]).expect("it runs"));
    assert!(table.contains(keys[2].as_str()) && !table.contains(keys[1].as_str()), "{table}");
}

#[tokio::test]
async fn a_webhook_that_no_worker_has_reached_is_in_flight_not_lost() {
    let mut world = World::without_processes(SERVERS).await.expect("servers");
    world.start_ingest().await.expect("an ingest");
    let app = world.connect().await.expect("a connection");
    let webhook = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help");
    world.send(&app, &webhook).await.expect("an answer");
    let counts = lines(&world.tidegate(&["audit", "--since", "1h", "--json"]).expect("none lost"));
    assert_eq!((&counts[0]["in_flight"], &counts[0]["missing"]), (&1.into(), &0.into()));
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
    assert!(table.ends_with("64 partitions: 64 held, 0 free; lag 0\n"), "{table}");
}

#[tokio::test]
async fn lanes_shows_what_is_set_aside_and_how_deep() {
    let world = World::without_processes(SERVERS).await.expect("servers");
    let claimed = world.store.claim_partitions("w", 1, Duration::from_secs(60)).await;
    let leased = claimed.expect("a claim")[0];
    let owner = Owner::live("w", leased.partition, leased.epoch, leased.generation);
    let connection = ConnectionId::random().expect("randomness");
    let lane = Lane::of(connection, Conversation::DirectMessage("D1"));
    let spilled = [1, 2].map(|sequence| {
        let dedupe = DedupeKey::event(connection, &format!("Ev{sequence}"));
        Spilled { lane, sequence, connection, dedupe, stored_at: None }
    });
    assert!(world.store.spill(&owner, &spilled).await.expect("an answer"));
    let shown = lines(&world.tidegate(&["lanes", "--json"]).expect("printed"));
    assert_eq!(shown.len(), 1);
    assert_eq!((&shown[0]["lane"], &shown[0]["depth"]), (&lane.to_string().into(), &2.into()));
    assert_eq!(shown[0]["connection"], connection.to_string());
    assert!(world.tidegate(&["lanes"]).expect("printed").contains(&lane.to_string()));
    assert_eq!(world.tidegate(&["lanes", "--limit", "0", "--json"]).expect("printed"), "");
}

#[tokio::test]
async fn the_dead_are_listed_by_connection_and_shown_with_their_bodies_only_when_asked() {
    let world = World::start(SMALL).await.expect("a world");
    let (app, other) = (world.connect().await, world.connect().await);
    let (app, other) = (app.expect("a connection"), other.expect("a connection"));
    let id = die(&world, &app, 1).await[0].to_string();
    let of = |app: &App| {
        let connection = app.connection.to_string();
        lines(
            &world.tidegate(&["dead", "list", "--connection", &connection, "--json"]).expect("ok"),
        )
    };
    assert_eq!((of(&app).len(), of(&other).len()), (1, 0));
    let shown = world.tidegate(&["dead", "show", &id]).expect("printed");
    assert!(shown.contains("undecodable envelope: it has no headers"), "{shown}");
    assert!(!shown.contains("no envelope 0"), "{shown}");
    let shown = world.tidegate(&["dead", "show", &id, "--body"]).expect("printed");
    assert!(shown.contains("no envelope 0"), "{shown}");
    let shown = lines(&world.tidegate(&["dead", "show", &id, "--body", "--json"]).expect("ok"));
    assert_eq!(shown[0]["body"], "no envelope 0");
    let (_, error) = printed(&world.try_tidegate(&["dead", "show", "99"]).expect("it runs"));
    assert_eq!(error, "not among the dead: 99; tidegate dead list says who is\n");
}

/// What came after it in its conversation went on long ago: its turn is past, and it is handled all the same. (Agent and
/// Slack go on answering while the verb waits: more than one thread.)
#[tokio::test(flavor = "multi_thread")]
async fn what_is_redriven_is_handled_once_past_its_conversations_order() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let say = async |text: &str| {
        let webhook = Webhook::message(&world.slack, &app, "D1", "U1", text);
        assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200);
        webhook
    };
    world.agent.break_down(true);
    let first = say("first").await;
    let dead = until("it is dead", Duration::from_secs(60), async || {
        world.store.dead(9).await.ok()?.first().map(|one| one.id.to_string())
    })
    .await;
    let ran = world.try_tidegate(&["dead", "redrive", &dead]).expect("it runs");
    let again = format!("tried, and dead again: {dead}; tidegate dead show says why\n");
    assert_eq!((ran.status.code(), printed(&ran).1), (Some(1), again));
    assert_eq!(world.store.dead(9).await.expect("a list")[0].attempts, 7);

    world.agent.break_down(false);
    let second = say("second").await;
    world.handled(&second.dedupe).await;
    assert_eq!(world.tidegate(&["dead", "redrive", "--all"]).expect("redriven"), "redriven: 1\n");
    assert_eq!(world.handled(&first.dedupe).await.outcome, "done");
    assert!(world.store.dead(9).await.expect("a list").is_empty());
    let heard = world.slack.told("its answer", |told| told.text() == "I heard: first").await;
    assert_eq!(heard.to, "D1");
    let ran = world.try_tidegate(&["dead", "redrive", &dead]).expect("it runs");
    assert!(printed(&ran).1.starts_with("not among the dead"), "{}", printed(&ran).1);
}

#[tokio::test]
async fn discarding_says_how_many_and_does_it_only_when_told_so() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let ids = die(&world, &app, 3).await;
    let ran = world.try_tidegate(&["dead", "discard", "--all"]).expect("it runs");
    assert_eq!(printed(&ran).1, "would discard, for good: 3. Say --yes to do it\n");
    assert_eq!((ran.status.code(), world.store.dead(9).await.expect("a list").len()), (Some(1), 3));
    let one = ids[0].to_string();
    let said = world.tidegate(&["dead", "discard", &one, "--yes"]).expect("discarded");
    assert_eq!(said, "discarded: 1\n");
    let reason = ["dead", "discard", "--all", "--reason", "another reason", "--yes"];
    assert_eq!(world.tidegate(&reason).expect("none"), "discarded: 0\n");
    let connection = app.connection.to_string();
    let rest = ["dead", "discard", "--all", "--connection", &connection, "--yes"];
    assert_eq!(world.tidegate(&rest).expect("discarded"), "discarded: 2\n");
    let ran = world.try_tidegate(&["dead", "discard", "--yes"]).expect("it runs");
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
        assert!(sent.iter().any(|key| line["dedupe"] == key.as_str()), "{line}");
    }
}
