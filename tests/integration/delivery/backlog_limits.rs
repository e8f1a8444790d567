//! Limits of a connection's open deliveries, messages, dead letters and rows without an age.

use futures_util::future::join_all;
use shared::{
    store::CONNECTION_ROWS_MAX,
    stream::{DedupKey, Partition},
};
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};
use tests::{
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{App, SMALL, Size, TestEnv, agent_id},
};

/// Maximum rows of a connection in these tests.
const ROWS_MAX: usize = 20;
/// Two rounds of counting, and the wait of a delivery for its next attempt.
const WITHIN: Duration = Duration::from_secs(90);

async fn start() -> TestEnv {
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    env.set("TIDEGATE_BACKLOG_MAX_ROWS", &ROWS_MAX.to_string());
    env.start_processes().await.expect("processes");
    env
}

async fn connect(env: &TestEnv) -> App {
    env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection")
}

async fn send(env: &TestEnv, app: &App, text: &str) -> DedupKey {
    let webhook = Webhook::message(&env.slack, app, "C1", "U1", text);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    webhook.dedup_key
}

/// Waits until the list of connections shows this state of the backlog.
async fn wait_for_state(env: &TestEnv, app: &App, state: &str) {
    let id = app.connection.to_string();
    eventually(&format!("the backlog is {state}"), WITHIN, async || {
        let list = env.tidegate(&["connections", "list"]).ok()?;
        let line = list.lines().find(|line| line.starts_with(&id))?;
        (line.split_whitespace().nth(6)? == state).then_some(())
    })
    .await;
}

/// Returns stage, reason, size of the payload and sequence of a dead letter.
async fn dead_letter(env: &TestEnv, key: &DedupKey) -> (String, String, i32, i64) {
    eventually("the webhook is a dead letter", WITHIN, async || {
        let sql =
            "select stage, reason, payload_bytes, sequence from dead_letters where dedup_key = $1";
        sqlx::query_as(sql).bind(key.as_str()).fetch_optional(&env.pool).await.ok()?
    })
    .await
}

async fn wait_for_answer(env: &TestEnv, text: &str) {
    let expected = format!("I heard: {text}");
    env.slack.wait_for_receipt("the agent answers", |r| r.text() == expected).await;
}

/// A connection with the maximum of open deliveries gets dead letters without payloads for further
/// webhooks. Commands and other connections are not affected.
#[tokio::test]
async fn bounds_open_deliveries() {
    let env = start().await;
    let (app, other) = (connect(&env).await, connect(&env).await);
    env.agent.set_failing(true);
    for n in 0..ROWS_MAX {
        send(&env, &app, &format!("kept {n}")).await;
    }
    wait_for_state(&env, &app, "full").await;
    let shown = env.tidegate(&["connections", "show", &app.connection.to_string()]).expect("it");
    assert!(shown.contains("20 deliveries (0 MiB), 0 dead letters"), "{shown}");
    let metric = r#"tidegate_backlog_full_connections{rows="deliveries"}"#;
    assert!((env.workers[0].metric(metric).await.expect("metrics") - 1.0).abs() < 0.5);

    let late = send(&env, &app, "beyond").await;
    let (stage, reason, bytes, sequence) = dead_letter(&env, &late).await;
    assert_eq!((&*stage, bytes, sequence > 0), ("intake", 0, true));
    assert_eq!(reason, "the connection has too many open deliveries");
    let status = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "status");
    env.send(&app, &status).await.expect("an answer");
    let is_reply = |r: &tests::slack::Receipt| status.response_url.ends_with(&r.to);
    env.slack.wait_for_receipt("the reply to the command", is_reply).await;
    send(&env, &other, "other").await;

    env.agent.set_failing(false);
    let id = app.connection.to_string();
    env.tidegate(&["deliveries", "retry", "--connection", &id, "--yes"]).expect("due");
    wait_for_answer(&env, "other").await;
    for n in 0..ROWS_MAX {
        wait_for_answer(&env, &format!("kept {n}")).await;
    }
    // The dead letter counts a hundredth of a delivery.
    wait_for_state(&env, &app, "large").await;
    send(&env, &app, "after").await;
    wait_for_answer(&env, "after").await;
    assert!(!env.agent.requests().iter().any(|asked| asked.question["text"] == "beyond"));
}

/// Over the limit dead letters are stored without payloads, and over twice the limit not at all.
#[tokio::test]
async fn bounds_dead_letters() {
    let env = start().await;
    let app = connect(&env).await;
    let first = send(&env, &app, "poison 1").await;
    let (stage, _, bytes, _) = dead_letter(&env, &first).await;
    assert!(stage == "dispatch" && bytes > 0, "{stage} {bytes}");
    let more = "insert into dead_letters (stage, partition, generation, sequence, subject, connection_id, reason, attempts, payload)
                select 'intake', 1, 1, n, 'x', $1, 'x', 0, '\\x00' from generate_series(1, $2) n";
    let insert = async |count: usize| {
        let query = sqlx::query(more).bind(app.connection.to_string()).bind(count as i64);
        query.execute(&env.pool).await.expect("rows");
    };
    insert(ROWS_MAX).await;
    wait_for_state(&env, &app, "full").await;
    let second = send(&env, &app, "poison 2").await;
    assert_eq!(dead_letter(&env, &second).await.2, 0, "the payload is stored");

    insert(ROWS_MAX).await;
    eventually("dead letters are ignored", WITHIN, async || {
        let sql = "select ignores from connection_backlog where connection_id = $1";
        let ignores: Option<bool> = sqlx::query_scalar(sql)
            .bind(app.connection.to_string())
            .fetch_optional(&env.pool)
            .await
            .ok()?;
        ignores.filter(|ignores| *ignores)
    })
    .await;
    let odd = tests::slack::malformed::not_understood(&env.slack).remove(0);
    assert_eq!(env.send(&app, &odd).await.expect("an answer").status, 200);
    send(&env, &app, "answered").await;
    wait_for_answer(&env, "answered").await;
    let count = "select count(*) from dead_letters where dedup_key = $1";
    let count: i64 = sqlx::query_scalar(count)
        .bind(odd.dedup_key.as_str())
        .fetch_one(&env.pool)
        .await
        .expect("a count");
    assert_eq!(count, 0, "the dead letter is stored");

    let delete = "delete from dead_letters";
    sqlx::query(delete).execute(&env.pool).await.expect("Postgres");
    wait_for_state(&env, &app, "-").await;
}

/// Messages that wait while sending is paused, and rejected messages, count towards the limit like
/// deliveries. At the limit commands take effect without replies.
#[tokio::test]
async fn bounds_messages() {
    let env = start().await;
    let app = connect(&env).await;
    let id = app.connection.to_string();
    env.tidegate(&["connections", "pause-sending", &id]).expect("paused");
    for n in 0..ROWS_MAX / 2 {
        send(&env, &app, &format!("waiting {n}")).await;
    }
    let rejected = "insert into outbox_failures (id, connection_id, lane, partition, channel_key, method, dedup_key,
                                                 request, error, attempts, created_at)
                    select -n, $1, n, 0, 'C1', 'chat.postMessage', 'rejected-' || n, 'k1:', 'error', 1, now()
                      from generate_series(1, $2) n";
    let rejected = sqlx::query(rejected).bind(&id).bind(ROWS_MAX as i64 / 2);
    rejected.execute(&env.pool).await.expect("rows");
    wait_for_state(&env, &app, "full").await;
    let late = send(&env, &app, "beyond").await;
    let (stage, reason, bytes, _) = dead_letter(&env, &late).await;
    assert_eq!((&*stage, bytes), ("intake", 0));
    assert_eq!(reason, "the connection has too many open deliveries");
    let waiting = async || -> i64 {
        let count = "select count(*) from outbox where connection_id = $1";
        sqlx::query_scalar(count).bind(&id).fetch_one(&env.pool).await.expect("a count")
    };
    let before = waiting().await;
    for n in 0..ROWS_MAX {
        let text = if n == 0 { "new" } else { "status" };
        let command = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", text);
        assert_eq!(env.send(&app, &command).await.expect("an answer").status, 200);
        assert_eq!(env.wait_for_outcome(&command.dedup_key).await.outcome, "command");
        let reason = "select reason from ignored_webhooks where dedup_key = $1";
        let reason = sqlx::query_scalar(reason).bind(command.dedup_key.as_str());
        let reason: Option<String> = reason.fetch_optional(&env.pool).await.expect("a row");
        assert_eq!(reason.as_deref(), Some("too_many_messages"));
    }
    assert_eq!(waiting().await, before, "replies are enqueued");
    let session = "select number from conversation_sessions where connection_id = $1";
    let session: i64 =
        sqlx::query_scalar(session).bind(&id).fetch_one(&env.pool).await.expect("a session");
    assert_eq!(session, 2, "the command has its effect");
    env.tidegate(&["connections", "resume-sending", &id]).expect("resumed");
    wait_for_answer(&env, &format!("waiting {}", ROWS_MAX / 2 - 1)).await;
    wait_for_state(&env, &app, "large").await;
}

/// A connection keeps its newest channels, people and sessions.
#[tokio::test]
async fn bounds_rows_without_age() {
    const OVER: i64 = 10;
    let env = start().await;
    let (app, other) = (connect(&env).await, connect(&env).await);
    for insert in [
        "insert into known_channels (connection_id, channel_id)
         select $1, 'C' || n from generate_series(1, $2) n",
        "insert into welcomed_users (connection_id, team_id, user_id)
         select $1, 'T1', 'U' || n from generate_series(1, $2) n",
        "insert into conversation_sessions (connection_id, team_id, channel_id, number)
         select $1, 'T1', 'C' || n, 2 from generate_series(1, $2) n",
    ] {
        for (app, rows) in [(&app, CONNECTION_ROWS_MAX + OVER), (&other, OVER)] {
            let insert = sqlx::query(insert).bind(app.connection.to_string()).bind(rows);
            insert.execute(&env.pool).await.expect("rows");
        }
    }
    // A new session makes the oldest conversation the newest.
    let renew = "update conversation_sessions set number = 3, id = default where channel_id = 'C1'";
    sqlx::query(renew).execute(&env.pool).await.expect("renewed");
    env.workers[0].process.restart().expect("it starts again");
    for (count, oldest) in [
        (
            "select count(*) from known_channels where connection_id = $1",
            "select channel_id from known_channels where connection_id = $1 order by id limit 1",
        ),
        (
            "select count(*) from welcomed_users where connection_id = $1",
            "select user_id from welcomed_users where connection_id = $1 order by id limit 1",
        ),
        (
            "select count(*) from conversation_sessions where connection_id = $1",
            "select channel_id from conversation_sessions where connection_id = $1
              order by id limit 1",
        ),
    ] {
        let counted = async |app: &App| -> i64 {
            let count = sqlx::query_scalar(count).bind(app.connection.to_string());
            count.fetch_one(&env.pool).await.expect("a count")
        };
        eventually("the oldest rows are deleted", WITHIN, async || {
            (counted(&app).await == CONNECTION_ROWS_MAX).then_some(())
        })
        .await;
        assert_eq!(counted(&other).await, OVER, "{count}");
        let oldest = sqlx::query_scalar(oldest).bind(app.connection.to_string());
        let oldest: String = oldest.fetch_one(&env.pool).await.expect("a row");
        let first = if count.contains("sessions") { OVER + 2 } else { OVER + 1 };
        assert_eq!(oldest[1..], first.to_string(), "{count}");
    }
}

/// A connection exceeds its limit by at most what its quota allows in two rounds of counting,
/// whatever the number of workers and partitions: each worker decides by the counts of the last
/// round (deploy/RUNBOOK.md, ConnectionBacklogFull).
#[tokio::test(flavor = "multi_thread")]
async fn exceeds_limit_by_two_rounds() {
    const LIMIT: usize = 200;
    const PER_SECOND: usize = 60;
    const BURST: usize = 200;
    /// Seconds of the interval between rounds and of a round on a busy machine.
    const ROUND: usize = 8;
    const CLIENTS: usize = 16;
    let size = Size { ingests: 2, workers: 3, own_postgres: false };
    let mut env = TestEnv::without_processes(size).await.expect("servers");
    for (name, value) in [
        ("TIDEGATE_BACKLOG_MAX_ROWS", LIMIT),
        ("TIDEGATE_QUOTA_WEBHOOKS_PER_SECOND", PER_SECOND),
        ("TIDEGATE_QUOTA_MAX_WEBHOOK_BURST", BURST),
    ] {
        env.set(name, &value.to_string());
    }
    env.start_processes().await.expect("processes");
    let app = connect(&env).await;
    env.agent.set_failing(true);
    let (accepted, done) = (AtomicUsize::new(0), AtomicBool::new(false));
    let send_as_client = async |client: usize| {
        for n in 0.. {
            if done.load(Ordering::Relaxed) {
                break;
            }
            let channel = format!("C{:04}", client * 4 + n % 4);
            let webhook =
                Webhook::message(&env.slack, &app, &channel, "U1", &format!("{client} {n}"));
            match env.send(&app, &webhook).await.expect("an answer").status {
                200 => accepted.fetch_add(1, Ordering::Relaxed),
                503 => {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
                status => panic!("{status}"),
            };
        }
    };
    let count = async |sql: &'static str| -> usize {
        let id = app.connection.to_string();
        let count: i64 = sqlx::query_scalar(sql).bind(id).fetch_one(&env.pool).await.expect("it");
        count as usize
    };
    let open = async || count("select count(*) from deliveries where connection_id = $1").await;
    let refused = async || {
        let sql = "select count(*) from dead_letters
                    where connection_id = $1 and reason = 'the connection has too many open deliveries'";
        count(sql).await
    };
    let stop_when_full = async {
        eventually("the limit is in force", WITHIN, async || {
            (refused().await >= 4 * PER_SECOND).then_some(())
        })
        .await;
        done.store(true, Ordering::Relaxed);
    };
    tokio::join!(join_all((0..CLIENTS).map(send_as_client)), stop_when_full);
    let accepted = accepted.into_inner();
    let open = eventually("all are decided", WITHIN, async || {
        let open = open().await;
        (open + refused().await == accepted).then_some(open)
    })
    .await;
    println!("{accepted} accepted, {open} open, the limit is {LIMIT}");
    let most = LIMIT + BURST + 2 * ROUND * PER_SECOND;
    assert!((LIMIT..=most).contains(&open), "{open} open deliveries; allowed are {most}");
    let partitions: BTreeSet<u16> = (0..CLIENTS * 4)
        .map(|n| Partition::of(app.connection, Some(&format!("C{n:04}"))).number())
        .collect();
    let owners = "select count(distinct owner) from partition_cursors where partition = any ($1)";
    let owners: i64 = sqlx::query_scalar(owners)
        .bind(partitions.iter().map(|partition| *partition as i16).collect::<Vec<_>>())
        .fetch_one(&env.pool)
        .await
        .expect("a count");
    assert!(owners > 1, "several workers decide for the connection: {partitions:?}");
}
