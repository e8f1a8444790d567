//! Ledger, dead letters and redrive for operators.

use serde_json::Value;
use shared::stream::{self, DedupKey, Partition};
use std::{
    process::Output,
    sync::{Arc, Mutex},
    time::Duration,
};
use tests::{
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{App, SMALL, Size, TIMEOUT, TestEnv, agent_id},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };

fn json_lines(printed: &str) -> Vec<Value> {
    printed.lines().map(|line| serde_json::from_str(line).expect("a line of JSON")).collect()
}

fn output_of(ran: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    (text(&ran.stdout), text(&ran.stderr))
}

async fn process_messages(env: &TestEnv, app: &App, count: usize) -> Vec<DedupKey> {
    let mut keys = Vec::new();
    for n in 0..count {
        let webhook = Webhook::command(&env.slack, app, &format!("C{n}"), "U1", "/lobu", "help");
        env.send(app, &webhook).await.expect("an answer");
        env.wait_for_outcome(&webhook.dedup_key).await;
        keys.push(webhook.dedup_key);
    }
    keys
}

/// Stores `count` messages that are no envelopes and waits until they are dead letters. Returns
/// their ids.
async fn create_dead_letters(env: &TestEnv, app: &App, count: usize) -> Vec<i64> {
    let js = async_nats::jetstream::new(env.client().clone());
    let subject = stream::subject(Partition::of(app.connection, Some("C1")), app.connection);
    for n in 0..count {
        let body = format!("no envelope {n}").into();
        js.publish(subject.clone(), body).await.expect("sent").await.expect("stored");
    }
    eventually("all are dead letters", TIMEOUT, async || {
        let dead = env.dead_letters().await.ok()?;
        (dead.len() == count).then(|| dead.iter().map(|one| one.id).collect())
    })
    .await
}

fn ledger_sum(env: &TestEnv) -> Value {
    let lines =
        json_lines(&env.tidegate(&["ledger", "verify", "--json"]).expect("none is missing"));
    lines.last().expect("a sum").clone()
}

/// The ledger accounts for processed webhooks and dead letters, also after these are deleted.
#[tokio::test]
async fn verifies_complete_ledger() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    process_messages(&env, &app, 5).await;
    create_dead_letters(&env, &app, 2).await;
    let expected = serde_json::json!({
        "partitions": 64, "committed": 7, "stored": 7, "purged": 0, "expired": 0, "missing": 0,
    });
    assert_eq!(ledger_sum(&env), expected);
    env.tidegate(&["dead-letters", "delete", "--all", "--yes"]).expect("deleted");
    assert_eq!(ledger_sum(&env), expected, "deleted dead letters count as committed");
    let (table, _) = output_of(&env.try_tidegate(&["ledger", "verify"]).expect("it runs"));
    assert_eq!(table, "64 partitions: 7 committed, 0 no longer in the stream, 0 missing\n");
}

/// The ledger reports a missing webhook with its partition: a cursor that moved past it without a
/// commit.
#[tokio::test]
async fn finds_missing_webhook() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let keys = process_messages(&env, &app, 4).await;
    let handled = env.find_outcome(&keys[2]).await.expect("it is done");
    sqlx::query("update partition_cursors set messages = messages - 1 where partition = $1")
        .bind(handled.partition)
        .execute(&env.pool)
        .await
        .expect("one is not counted");
    let ran = env.try_tidegate(&["ledger", "verify", "--json"]).expect("it runs");
    let (out, error) = output_of(&ran);
    assert_eq!(ran.status.code(), Some(1), "{error}");
    let found = json_lines(&out);
    assert_eq!((found.len(), &found[0]["partition"]), (2, &handled.partition.into()));
    assert_eq!((&found[0]["missing"], &found[1]["missing"]), (&1.into(), &1.into()));
    assert!(error.contains("missing webhooks: 1"), "{error}");
}

/// A webhook that no worker has read is lag of its partition, not missing.
#[tokio::test]
async fn counts_unread_as_lag() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    env.start_ingest().await.expect("an ingest");
    let app = env.connect().await.expect("a connection");
    let webhook = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "help");
    env.send(&app, &webhook).await.expect("an answer");
    assert_eq!(
        (&ledger_sum(&env)["committed"], &ledger_sum(&env)["missing"]),
        (&0.into(), &0.into())
    );
    let partitions = json_lines(&env.tidegate(&["partitions", "--json"]).expect("printed"));
    let behind: Vec<_> = partitions.iter().filter(|line| line["lag"] != 0).collect();
    let partition = Partition::of(app.connection, Some("C1")).number();
    assert_eq!((behind.len(), &behind[0]["partition"]), (1, &partition.into()));
    assert_eq!((&behind[0]["lag"], &behind[0]["held"]), (&1.into(), &false.into()));
}

/// Commands that open no encrypted column run without keyrings.
#[tokio::test]
async fn needs_no_unused_keyring() {
    let mut env = TestEnv::without_processes(SERVERS).await.expect("servers");
    let app = env.declare().expect("applied");
    for ring in ["TIDEGATE_SIGNING_SECRET_KEYRING", "TIDEGATE_TOKEN_KEYRING"] {
        env.set(ring, "no keyring");
    }
    let id = app.connection.to_string();
    let all: [&[&str]; 13] = [
        &["partitions"],
        &["connections", "list"],
        &["connections", "show", &id],
        &["connections", "disable", &id],
        &["connections", "enable", &id],
        &["connections", "pause-sending", &id],
        &["link-codes", "list"],
        &["agents", "list"],
        &["deliveries", "list"],
        &["dead-letters", "list"],
        &["outbox", "failures", "list"],
        &["ledger", "verify"],
        &["connections", "delete", &id, "--yes"],
    ];
    for args in all {
        let ran = env.try_tidegate(args).expect("it runs");
        let (_, stderr) = output_of(&ran);
        // 3: nothing found
        assert!(matches!(ran.status.code(), Some(0 | 3)), "{args:?}: {stderr}");
    }
    let ran = env.try_tidegate(&["keys", "status"]).expect("it runs");
    assert_eq!(ran.status.code(), Some(64), "{}", output_of(&ran).1);
}

/// `partitions` lists the owner and the lease of each partition.
#[tokio::test]
async fn lists_partition_owners() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let shown = json_lines(&env.tidegate(&["partitions", "--json"]).expect("printed"));
    assert_eq!(shown.len(), 64);
    for line in &shown {
        assert_eq!((&line["owner"], &line["held"]), (&"worker-1".into(), &true.into()), "{line}");
        assert!(line["lease_ms"].as_i64().is_some_and(|ms| ms > 0), "{line}");
    }
    let table = env.tidegate(&["partitions"]).expect("printed");
    assert!(table.contains("64 partitions: 64 held, 0 free; lag 0"), "{table}");
}

/// `deliveries list` shows a waiting lane, and `deliveries skip` ends its first delivery.
#[tokio::test]
async fn lists_waiting_lanes() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    env.agent.set_failing(true);
    for text in ["one", "two"] {
        let webhook = Webhook::message(&env.slack, &app, "D1", "U1", text);
        assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
    }
    let shown = eventually("both wait", TIMEOUT, async || {
        let ran = env.try_tidegate(&["deliveries", "list", "--json"]).ok()?;
        let shown = json_lines(&output_of(&ran).0);
        let tried = shown.first().is_some_and(|one| one["waiting"] == 2 && one["attempts"] != 0);
        tried.then_some(shown)
    })
    .await;
    assert_eq!(shown.len(), 1);
    assert_eq!(shown[0]["connection"], app.connection.to_string());
    let lane = shown[0]["lane"].as_str().expect("a lane");
    assert!(env.tidegate(&["deliveries", "list"]).expect("printed").contains(lane));
    let none = env.try_tidegate(&["deliveries", "list", "--agent", "org/nobody"]);
    assert_eq!(none.expect("it runs").status.code(), Some(3), "nothing matches");

    let target = format!("{}/{lane}", app.connection);
    eventually("the first is skipped", TIMEOUT, async || {
        // A running delivery can't be skipped.
        env.tidegate(&["deliveries", "skip", &target]).ok()
    })
    .await;
    env.agent.set_failing(false);
    env.slack
        .wait_for_receipt("the second is answered", |receipt| receipt.text() == "I heard: two")
        .await;
    let answered = env.slack.receipts().iter().any(|receipt| receipt.text() == "I heard: one");
    assert!(!answered, "the skipped message is not answered");
}

/// Dead letters are listed by connection, and their bodies are shown on request only.
#[tokio::test]
async fn lists_dead_letters() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let (app, other) = (env.connect().await, env.connect().await);
    let (app, other) = (app.expect("a connection"), other.expect("a connection"));
    let id = create_dead_letters(&env, &app, 1).await[0].to_string();
    let of = |app: &App| {
        let connection = app.connection.to_string();
        {
            let list = ["dead-letters", "list", "--connection", &connection, "--json"];
            json_lines(&output_of(&env.try_tidegate(&list).expect("it runs")).0)
        }
    };
    assert_eq!((of(&app).len(), of(&other).len()), (1, 0));
    let shown = env.tidegate(&["dead-letters", "show", &id]).expect("printed");
    assert!(shown.contains("undecodable envelope: no headers"), "{shown}");
    assert!(!shown.contains("no envelope 0"), "{shown}");
    let shown = env.tidegate(&["dead-letters", "show", &id, "--body"]).expect("printed");
    assert!(shown.contains("no envelope 0"), "{shown}");
    let shown =
        json_lines(&env.tidegate(&["dead-letters", "show", &id, "--body", "--json"]).expect("ok"));
    assert_eq!(shown[0]["body"], "no envelope 0");
    let (_, error) =
        output_of(&env.try_tidegate(&["dead-letters", "show", "99"]).expect("it runs"));
    assert_eq!(error, "dead letter 99 not found; list them with tidegate dead-letters list\n");
}

/// A redriven dead letter of dispatch is delivered behind newer messages of its conversation.
#[tokio::test(flavor = "multi_thread")]
async fn redrives_to_end_of_lane() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let send = async |text: &str| {
        let webhook = Webhook::message(&env.slack, &app, "D1", "U1", text);
        assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
        webhook
    };
    let first = send("poison").await;
    let dead = eventually("the delivery is a dead letter", Duration::from_secs(60), async || {
        env.dead_letters().await.ok()?.first().map(|one| (one.id.to_string(), one.attempts))
    })
    .await;
    assert_eq!(
        (dead.1, env.wait_for_outcome(&first.dedup_key).await.outcome),
        (3, "dead_letter".into())
    );
    let fields = async || -> (i32, String, Option<String>, Option<String>, String) {
        let sql = "select hops, team_id, thread_ts, traceparent, received_at::text
                     from dead_letters where stage = 'dispatch'";
        sqlx::query_as(sql).fetch_one(&env.pool).await.expect("a row")
    };
    let before = fields().await;
    let second = send("second").await;
    assert_eq!(env.wait_for_outcome(&second.dedup_key).await.outcome, "completed");
    let ran = env.try_tidegate(&["dead-letters", "redrive", "--all"]).expect("it runs");
    assert_eq!(output_of(&ran).1, "would redrive: 1 dead letters; pass --yes to do it\n");
    let redriven = env.tidegate(&["dead-letters", "redrive", &dead.0]);
    assert_eq!(redriven.expect("redriven"), "redriven: 1\n");
    eventually("the delivery is a dead letter again", Duration::from_secs(60), async || {
        let again = env.dead_letters().await.ok()?;
        again.first().filter(|one| one.id.to_string() != dead.0).map(|_| ())
    })
    .await;
    assert_eq!(fields().await, before, "a redriven delivery keeps all fields");
    let asked = env.agent.requests().iter().filter(|a| a.question["text"] == "poison").count();
    assert_eq!(asked, 6, "three attempts each time");
    let ran = env.try_tidegate(&["dead-letters", "redrive", &dead.0]).expect("it runs");
    assert!(
        output_of(&ran).1.ends_with("list them with tidegate dead-letters list\n"),
        "{}",
        output_of(&ran).1
    );
    assert_eq!(ran.status.code(), Some(3));
}

/// `dead-letters delete` prints the number without `--yes`, and deletes by id, reason or connection
/// with it.
#[tokio::test]
async fn deletes_after_confirmation() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let ids = create_dead_letters(&env, &app, 3).await;
    let ran = env.try_tidegate(&["dead-letters", "delete", "--all"]).expect("it runs");
    assert_eq!(
        output_of(&ran).1,
        "would delete permanently: 3 dead letters; pass --yes to do it\n"
    );
    assert_eq!((ran.status.code(), env.dead_letters().await.expect("a list").len()), (Some(1), 3));
    let one = ids[0].to_string();
    let printed = env.tidegate(&["dead-letters", "delete", &one, "--yes"]).expect("discarded");
    assert_eq!(printed, "deleted: 1\n");
    let reason = ["dead-letters", "delete", "--all", "--reason", "another reason", "--yes"];
    assert_eq!(env.try_tidegate(&reason).expect("it runs").status.code(), Some(3), "none");
    let connection = app.connection.to_string();
    let rest = ["dead-letters", "delete", "--all", "--connection", &connection, "--yes"];
    assert_eq!(env.tidegate(&rest).expect("discarded"), "deleted: 2\n");
    let ran = env.try_tidegate(&["dead-letters", "delete", "--yes"]).expect("it runs");
    assert!(!ran.status.success(), "neither ids nor --all");
}

/// `tail` prints webhooks of the selected connection, without bodies.
#[tokio::test]
async fn tails_one_connection() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let (app, other) = (env.connect().await, env.connect().await);
    let (app, other) = (app.expect("a connection"), other.expect("a connection"));
    let env = Arc::new(env);
    let tail = tokio::task::spawn_blocking({
        let (env, connection) = (Arc::clone(&env), app.connection.to_string());
        move || env.tidegate(&["tail", "--connection", &connection, "--count", "2", "--json"])
    });
    // `tail` prints messages stored after its start, so webhooks are sent until it has printed two.
    let sent = Mutex::new(Vec::new());
    eventually("two webhooks are printed", TIMEOUT, async || {
        for app in [&other, &app] {
            let webhook = Webhook::command(&env.slack, app, "C1", "U1", "/lobu", "help me");
            env.send(app, &webhook).await.ok()?;
            sent.lock().ok()?.push(webhook.dedup_key);
        }
        tail.is_finished().then_some(())
    })
    .await;
    let printed = tail.await.expect("it ended").expect("it ended well");
    assert!(!printed.contains("help"), "{printed}");
    let (shown, sent) = (json_lines(&printed), sent.into_inner().expect("nobody panicked"));
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
