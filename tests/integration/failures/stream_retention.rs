//! Retention of the stream and of tables: committed history is purged, and nothing that is still
//! needed.

use futures_util::TryStreamExt;
use shared::stream::{self, Partition, STREAM};
use std::time::Duration;
use tests::{
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{App, SMALL, TIMEOUT, TestEnv, agent_id},
};

/// Maximum time of a round: owners of partitions check the stream once a minute, and an unavailable
/// agent is probed after a minute.
const RETENTION_TIMEOUT: Duration = Duration::from_secs(100);

async fn first_sequence(env: &TestEnv) -> u64 {
    let stream = env.jetstream().get_stream(STREAM).await.expect("the stream");
    stream.cached_info().state.first_sequence
}

async fn fill_stream(env: &TestEnv, app: &App) {
    env.change_stream(|stream| stream.max_bytes = 350_000).await.expect("little room");
    // Random, because the stream is compressed.
    for n in 0..10 {
        let noise: String = (0..8_000)
            .map(|_| format!("{:04x}", getrandom::u32().expect("randomness") as u16))
            .collect();
        let webhook = Webhook::message(&env.slack, app, &format!("C{n}"), "U1", &noise);
        assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    }
}

async fn count_rows(env: &TestEnv, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&env.pool).await.expect("a count")
}

/// A stream that fills up loses committed webhooks, also those whose deliveries still wait. The
/// ledger records the purge.
#[tokio::test]
async fn purges_committed_history() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    env.agent.set_failing(true);
    // The last webhook of a partition stays in the stream: the cursor is recognized by it.
    let waiting = ["one", "two"].map(|text| Webhook::message(&env.slack, &app, "D1", "U1", text));
    for webhook in &waiting {
        assert_eq!(env.send(&app, webhook).await.expect("an answer").status, 200);
    }
    eventually("both wait for their agent", TIMEOUT, async || {
        (count_rows(&env, "select count(*) from deliveries").await == 2).then_some(())
    })
    .await;
    let other = env.connect().await.expect("another connection");
    fill_stream(&env, &other).await;
    eventually("the first webhook is purged from the stream", RETENTION_TIMEOUT, async || {
        (first_sequence(&env).await > 1).then_some(())
    })
    .await;
    env.agent.set_failing(false);
    for webhook in &waiting {
        let handled =
            eventually("the delivery is attempted again", RETENTION_TIMEOUT, async || {
                env.find_outcome(&webhook.dedup_key).await
            });
        assert_eq!(handled.await.outcome, "completed");
    }
    env.slack
        .wait_for_receipt("the answer to the purged webhook", |receipt| {
            receipt.text() == "I heard: one"
        })
        .await;

    let webhook = Webhook::message(&env.slack, &other, "C1", "U1", "there is room");
    assert_eq!(env.send(&other, &webhook).await.expect("an answer").status, 200);
    env.wait_for_outcome(&webhook.dedup_key).await;
    let verified = env.tidegate(&["ledger", "verify"]).expect("nothing is missing");
    assert!(verified.contains("0 missing"), "{verified}");
}

/// The older half of a connection's committed webhooks is purged once they exceed its share.
/// Others' are not.
#[tokio::test]
async fn purges_over_share() {
    const BODIES: usize = 12;
    let mut env = TestEnv::without_processes(SMALL).await.expect("a test environment");
    // A partition gets an eighth, and half of that is for the newest webhooks: 32 KiB, which are 2
    // bodies.
    env.set("TIDEGATE_STREAM_MAX_BYTES_PER_CONNECTION", "512KiB");
    env.start_processes().await.expect("processes");
    let (hostile, other) = (env.connect().await, env.connect().await);
    let (hostile, other) = (hostile.expect("a connection"), other.expect("a connection"));
    let kept = Webhook::message(&env.slack, &other, "C1", "U1", "hello");
    assert_eq!(env.send(&other, &kept).await.expect("an answer").status, 200);
    env.wait_for_outcome(&kept.dedup_key).await;
    let text = "x".repeat(20 * 1024);
    for _ in 0..BODIES {
        let webhook = Webhook::message(&env.slack, &hostile, "C1", "U1", &text);
        assert_eq!(env.send(&hostile, &webhook).await.expect("an answer").status, 200);
    }
    let count = async |app: &App| {
        let stream = env.jetstream().get_stream(STREAM).await.expect("the stream");
        let subject = stream::subject(Partition::of(app.connection, Some("C1")), app.connection);
        let counts = stream.info_with_subjects(subject).await.expect("counts");
        let counts: Vec<(String, usize)> = counts.try_collect().await.expect("counts");
        counts.iter().map(|(_, count)| count).sum::<usize>()
    };
    eventually("the older half is purged", TIMEOUT, async || {
        (count(&hostile).await <= 4).then_some(())
    })
    .await;
    assert!(count(&hostile).await >= 2, "the newer half stays");
    assert_eq!(count(&other).await, 1, "the other connection's stays");
    let removals = "select count(*) from stream_removals where removed is not null";
    assert_eq!(count_rows(&env, removals).await, 1, "one row for all purges of a subject");
    let verified = env.tidegate(&["ledger", "verify"]).expect("nothing is missing");
    assert!(verified.contains("0 missing"), "{verified}");
    let worker = &env.workers[0];
    assert!(worker.metric("tidegate_stream_share_purges_total").await.expect("a metric") >= 4.0);
}

/// Expired rows of each table are deleted, and others stay.
#[tokio::test]
async fn deletes_expired_rows() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let young = Webhook::message(&env.slack, &app, "D1", "U1", "hello");
    env.send(&app, &young).await.expect("an answer");
    env.wait_for_outcome(&young.dedup_key).await;
    eventually("the answer is sent", TIMEOUT, async || {
        (count_rows(&env, "select count(*) from outbox_log").await == 1).then_some(())
    })
    .await;
    // In slots that belong to no current day.
    for sql in [
        "insert into outbox_log (slot, outbox_id, connection_id, lane, channel_key, method, dedup_key, attempts,
                                 resend_count, created_at)
         select (floor(extract(epoch from now()) / 86400)::integer - 30) % 32, 99, connection_id, lane, channel_key, method,
                'old', 1, 0, now() - interval '31 days' from outbox_log limit 1",
        "insert into processed_keys (slot, partition, day, key, generation, sequence, outcome)
         select (floor(extract(epoch from now()) / 86400)::integer - 5) % 8, 0,
                floor(extract(epoch from now()) / 86400)::integer - 5, '\\x00', 1, 1, 1",
        "insert into link_code_attempts (who, misses, until) values ('old', 1, now() - interval '1 s')",
        "insert into api_keys (id, key_hash, role, created_by, expires_at) values ('key', '', 'viewer', '', now())",
        "insert into idempotency_keys (api_key_id, key, request_hash, at)
         values ('key', 'old', '', now() - interval '25 hours'), ('key', 'young', '', now() - interval '23 hours')",
    ] {
        sqlx::query(sql).execute(&env.pool).await.expect("an old row");
    }
    for (old, left) in [
        (
            "select count(*) from outbox_log where dedup_key = 'old'",
            "select count(*) from outbox_log",
        ),
        (
            "select count(*) from processed_keys where key = '\\x00'",
            "select count(*) from processed_keys",
        ),
        ("select count(*) from link_code_attempts", "select count(*) + 1 from link_code_attempts"),
        (
            "select count(*) from idempotency_keys where key = 'old'",
            "select count(*) from idempotency_keys",
        ),
    ] {
        eventually("the old row is gone", TIMEOUT * 2, async || {
            (count_rows(&env, old).await == 0).then_some(())
        })
        .await;
        assert!(count_rows(&env, left).await >= 1, "{left}");
    }
    eventually("lanes without deliveries are deleted", TIMEOUT * 2, async || {
        (count_rows(&env, "select count(*) from delivery_lanes").await == 0).then_some(())
    })
    .await;
}
