//! Stream resets: they are detected and logged, and the new stream is read from the time of the
//! last commit.

use async_nats::jetstream::{self, context::Context};
use shared::stream::{self, Partition, STREAM, StreamSize};
use std::time::Duration;
use tests::{
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{App, SMALL, TIMEOUT, TestEnv, agent_id},
};

const RESET_LOG: &str = "stream reset detected";

async fn send_message(env: &TestEnv, app: &App, channel: &str, text: &str) -> Webhook {
    let webhook = Webhook::message(&env.slack, app, channel, "U1", text);
    let taken = async || match env.send(app, &webhook).await {
        Ok(answer) if answer.status == 200 => Some(()),
        _ => None, // the stream is being created
    };
    eventually("the webhook is accepted", TIMEOUT, taken).await;
    webhook
}

fn jetstream(env: &TestEnv) -> Context {
    jetstream::new(env.client().clone())
}

/// Deletes the stream and creates it again, empty.
async fn recreate_stream(env: &TestEnv) {
    jetstream(env).delete_stream(STREAM).await.expect("it goes");
    stream::provision(&jetstream(env), StreamSize::default()).await.expect("it comes");
}

/// Deletes all messages up to a sequence, whether read or not.
async fn delete_through(env: &TestEnv, through: u64) {
    let stream = jetstream(env).get_stream(STREAM).await.expect("the stream");
    stream.purge().sequence(through + 1).await.expect("it is purged");
}

/// Waits until the cursor of each partition that had messages is at a sequence.
async fn wait_for_cursors(env: &TestEnv, at_least: i64) {
    eventually("the cursors are saved", TIMEOUT, async || {
        let least = "select min(cursor) from partition_cursors where messages > 0";
        let least: i64 = sqlx::query_scalar(least).fetch_one(&env.pool).await.ok()?;
        (least >= at_least).then_some(())
    })
    .await;
}

async fn count_requests(env: &TestEnv, text: &str) -> usize {
    env.agent.requests().iter().filter(|asked| asked.question["text"] == text).count()
}

/// A recreated stream, whose sequences start at one, is detected, and each of its webhooks is
/// processed once.
#[tokio::test]
async fn handles_recreated_stream() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    for n in 0..5 {
        let sent = send_message(&env, &app, "D1", &format!("before {n}")).await;
        env.wait_for_outcome(&sent.dedup_key).await;
    }
    wait_for_cursors(&env, 5).await;
    recreate_stream(&env).await;
    for n in 0..3 {
        let sent = send_message(&env, &app, "D1", &format!("after {n}")).await;
        env.wait_for_outcome(&sent.dedup_key).await;
        assert_eq!(count_requests(&env, &format!("after {n}")).await, 1);
    }
    env.wait_for_log(RESET_LOG).await.expect("the reset is logged");
    let raised: i64 =
        sqlx::query_scalar("select count(*) from partition_cursors where generation = 2")
            .fetch_one(&env.pool)
            .await
            .expect("a count");
    assert_eq!(raised, 64, "every partition reads the new stream");
    let counted = env.workers[0].metric("tidegate_stream_resets_total").await;
    assert_eq!(counted.expect("a figure"), 64.0);
}

/// A stream that is recreated while no worker runs is detected when a worker claims the partition.
#[tokio::test]
async fn detects_reset_at_claim() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    for n in 0..5 {
        let sent = send_message(&env, &app, "D1", &format!("before {n}")).await;
        env.wait_for_outcome(&sent.dedup_key).await;
    }
    wait_for_cursors(&env, 5).await;
    let worker = &env.workers[0].process;
    worker.terminate();
    worker.wait(TIMEOUT).await.expect("it ends");
    recreate_stream(&env).await;
    // The new stream is as long as the old one, so that only the time of creation differs.
    let mut sent = Vec::new();
    for n in 0..7 {
        sent.push(send_message(&env, &app, "D1", &format!("after {n}")).await);
    }
    worker.restart().expect("it starts");
    for webhook in &sent {
        env.wait_for_outcome(&webhook.dedup_key).await;
    }
    env.wait_for_log(RESET_LOG).await.expect("the reset is logged");
}

/// Webhooks that the stream dropped before they were read are lost, the rest is processed, and no
/// reset is reported.
#[tokio::test]
async fn handles_rest_after_lost_start() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let first = send_message(&env, &app, "D1", "before").await;
    env.wait_for_outcome(&first.dedup_key).await;
    wait_for_cursors(&env, 1).await;
    let worker = &env.workers[0].process;
    worker.terminate();
    worker.wait(TIMEOUT).await.expect("it ends");
    send_message(&env, &app, "D1", "gone").await;
    let left = send_message(&env, &app, "D1", "left").await;
    delete_through(&env, 2).await;
    let first = jetstream(&env).get_stream(STREAM).await.expect("the stream");
    assert_eq!(first.cached_info().state.first_sequence, 3);
    worker.restart().expect("it starts");
    env.wait_for_outcome(&left.dedup_key).await;
    assert_eq!((count_requests(&env, "gone").await, count_requests(&env, "left").await), (0, 1));
    assert!(!env.logs().contains(RESET_LOG), "{}", env.logs());
}

/// A truncated stream with another message at the sequence of the last commit is a reset, and no
/// webhook is processed twice.
#[tokio::test]
async fn detects_truncated_stream() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let mut sent = Vec::new();
    for n in 0..5 {
        sent.push(send_message(&env, &app, "D1", &format!("before {n}")).await);
        env.wait_for_outcome(&sent[n].dedup_key).await;
    }
    let worker = &env.workers[0].process;
    worker.terminate();
    worker.wait(TIMEOUT).await.expect("it ends");
    // State as if the stream had been restored to an earlier time.
    sqlx::query(
        "update partition_cursors set last_key = 'a webhook of the stream that was', last_stored_at = now() - interval '1 s'
          where messages > 0",
    )
    .execute(&env.pool)
    .await
    .expect("changed");
    let after = send_message(&env, &app, "D1", "after").await;
    worker.restart().expect("it starts");
    env.wait_for_outcome(&after.dedup_key).await;
    env.wait_for_log(RESET_LOG).await.expect("the reset is logged");
    for n in 0..5 {
        assert_eq!(
            count_requests(&env, &format!("before {n}")).await,
            1,
            "the agent is called once per message"
        );
    }
}

/// When the stream loses its end, new messages at those sequences are read, also in an idle
/// partition.
#[tokio::test]
async fn reads_truncated_idle_partition() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let of = |channel: &str| Partition::of(app.connection, Some(channel));
    let busy = (2..).map(|n| format!("D{n}")).find(|channel| of(channel) != of("D1"));
    let busy = busy.expect("a channel of another partition");
    let sent = send_message(&env, &app, "D1", "before").await;
    env.wait_for_outcome(&sent.dedup_key).await;
    env.nats.save().await.expect("it comes back");
    for n in 0..10 {
        let sent = send_message(&env, &app, &busy, &format!("lost {n}")).await;
        env.wait_for_outcome(&sent.dedup_key).await;
    }
    // A reader that is opened again looks up the end of the stream.
    env.nats.restart().await.expect("it comes back");
    let sent = send_message(&env, &app, &busy, "lost, too").await;
    env.wait_for_outcome(&sent.dedup_key).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    env.nats.restore().await.expect("it comes back");
    let after = send_message(&env, &app, "D1", "after").await;
    env.wait_for_outcome(&after.dedup_key).await;
    assert_eq!(count_requests(&env, "after").await, 1);
}

/// A partition whose history was purged is idle, not reset.
#[tokio::test]
async fn ignores_purged_history() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    for n in 0..3 {
        let sent = send_message(&env, &app, "D1", &format!("before {n}")).await;
        env.wait_for_outcome(&sent.dedup_key).await;
    }
    let worker = &env.workers[0].process;
    worker.terminate();
    worker.wait(TIMEOUT).await.expect("it ends");
    delete_through(&env, 3).await;
    worker.restart().expect("it starts");
    let after = send_message(&env, &app, "D1", "after").await;
    env.wait_for_outcome(&after.dedup_key).await;
    assert!(!env.logs().contains(RESET_LOG), "{}", env.logs());
}
