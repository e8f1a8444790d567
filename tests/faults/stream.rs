//! Faults of the stream, by an administrator or a failed disk: deletion, truncation, purges.

use crate::{
    Run,
    matrix::Outcome,
    runner::{
        Runner, SIZE, ensure_in_time, held, replace_workers, send_everywhere, send_until_accepted,
    },
};
use anyhow::ensure;
use shared::stream::{Partition, STREAM, subject_filter};
use std::time::{Duration, Instant};
use tests::{
    eventually::try_eventually,
    fault::CALM,
    slack::webhook::Webhook,
    test_env::{TIMEOUT, TestEnv, agent_id},
};

const ALARM: &str = "stream reset detected";
/// Number of messages that are processed before the fault and resent after it.
const COPIES: usize = 5;
/// Maximum time after the stream is restored until rejected webhooks are resent and workers read
/// the stream.
const READ_AGAIN: Duration = Duration::from_secs(5);

/// The stream is closed for new webhooks, all stored webhooks are processed, the stream is deleted,
/// and the operator's command recreates it. Webhooks that are rejected meanwhile are resent. Copies
/// of processed webhooks are accepted, because only Postgres has their keys, and have no second
/// effect. Webhooks that a stream loses before they are processed are lost, so there are none here.
pub async fn deleted(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::start(SIZE).await?;
    let (mut copies, mut away, mut taken_again) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    let runner = Runner { users: 4, repeats: false, ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, app| {
            let message = |text: &str| Webhook::message(&env.slack, app, "D9500", "U1", text);
            for n in 0..COPIES {
                copies.push(message(&format!("before {n}")));
                send_until_accepted(env, app, &copies[n]).await?;
            }
            let closed = Instant::now();
            env.change_stream(|stream| stream.max_messages = 1).await?;
            env.wait_until_processed(TIMEOUT).await?;
            env.jetstream().delete_stream(STREAM).await?;
            tokio::time::sleep(CALM).await;
            let answer = env.send(app, &message("without a stream")).await?;
            ensure!(answer.status == 503, "ingest without a stream answered {answer:?}");
            env.run_tidegate(&["migrate"]).await?;
            away = closed.elapsed();
            let made = Instant::now();
            for copy in &copies {
                send_until_accepted(env, app, copy).await?;
            }
            taken_again = made.elapsed();
            // When the last message of the conversation is processed, the copies are processed.
            let last = message("the last");
            send_until_accepted(env, app, &last).await?;
            env.try_wait_for_outcome(&last.dedup_key).await?;
            Ok(())
        })
        .await?;
    ensure_in_time(&verdict)?;
    ensure!(verdict.notified > 0, "no user of a command got a notice: {verdict}");
    ensure!(verdict.rejected > 0, "no request was rejected: {verdict}");
    ensure!(verdict.worst_gap < away + READ_AGAIN, "the stream was gone for {away:?}: {verdict}");
    let (receipts, requests) = (env.slack.receipts(), env.agent.requests());
    for (n, copy) in copies.iter().enumerate() {
        let answer = format!("I heard: before {n}");
        let posts = receipts.iter().filter(|receipt| receipt.text() == answer).count();
        let calls = requests.iter().filter(|call| call.question["text"] == copy.what).count();
        ensure!((posts, calls) == (1, 1), "{answer}: {posts} posts, {calls} calls of the agent");
    }
    env.wait_for_log(ALARM).await?;
    let raised = "select count(*) from partition_cursors where generation = 2";
    try_eventually("every partition reads the new stream", TIMEOUT, async || {
        let raised: i64 = sqlx::query_scalar(raised).fetch_one(&env.pool).await.ok()?;
        (raised == 64).then_some(())
    })
    .await?;
    let (away, ms) = (away.as_secs_f64(), taken_again.as_millis());
    let notes = format!(
        "stream gone for {away:.1} s, {COPIES} copies accepted within {ms} ms without effect"
    );
    held(verdict, [notes])
}

/// The stream is restored to an earlier state and gets other messages at the lost sequences and
/// past the cursors, before a worker reads it. All lost messages had been processed.
pub async fn truncated(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::start(SIZE).await?;
    let mut lost = 0;
    let runner = Runner { drained_within: Duration::from_secs(90), ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, _| {
            env.nats.save().await?;
            let before = last_sequence(env).await?;
            tokio::time::sleep(2 * CALM).await;
            env.change_stream(|stream| stream.max_messages = 1).await?; // closed for new webhooks
            env.wait_until_processed(TIMEOUT).await?;
            let end = last_sequence(env).await?;
            lost = end - before;
            env.workers.iter().for_each(|worker| worker.process.kill());
            env.nats.restore().await?;
            try_eventually("the stream is filled past the cursors", TIMEOUT, async || {
                (last_sequence(env).await.ok()? > end + 50).then_some(())
            })
            .await?;
            for worker in &env.workers {
                worker.process.restart()?;
            }
            env.wait_until_balanced().await
        })
        .await?;
    ensure_in_time(&verdict)?;
    ensure!(lost > 20, "only {lost} messages were lost: the test proves nothing");
    env.wait_for_log(ALARM).await?;
    held(verdict, [format!("the last {lost} messages were lost and replaced by others")])
}

/// The stream is restored to an earlier state beside running workers, which have read idle
/// partitions up to the end of the stream. New messages at the lost sequences are processed.
pub async fn truncated_beside_workers(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::start(SIZE).await?;
    let mut lost = 0;
    let runner = Runner { drained_within: Duration::from_secs(90), ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, _| {
            let idle = env.connect_as(|new| new.agent = Some(agent_id())).await?;
            send_everywhere(env, &idle, "before").await?;
            env.nats.save().await?;
            let before = last_sequence(env).await?;
            tokio::time::sleep(2 * CALM).await;
            // Readers that are opened again look up the end of the stream.
            env.nats.kill();
            env.nats.restart().await?;
            tokio::time::sleep(CALM).await;
            env.change_stream(|stream| stream.max_messages = 1).await?; // closed for new webhooks
            env.wait_until_processed(TIMEOUT).await?;
            lost = last_sequence(env).await? - before;
            env.nats.restore().await?;
            send_everywhere(env, &idle, "after").await?;
            Ok(())
        })
        .await?;
    ensure_in_time(&verdict)?;
    ensure!(lost > 50, "only {lost} messages were lost: the test proves nothing");
    env.wait_for_log(ALARM).await?;
    held(verdict, [format!("the last {lost} messages were lost and replaced by others")])
}

/// All committed messages are purged, and workers are restarted. The missing last message of a
/// partition is not a stream reset.
pub async fn purged(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::start(SIZE).await?;
    let runner = Runner { repeats: false, ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, _| {
            let idle = env.connect_as(|new| new.agent = Some(agent_id())).await?;
            send_everywhere(env, &idle, "before").await?;
            let cursors: Vec<(i16, i64)> =
                sqlx::query_as("select partition, cursor from partition_cursors")
                    .fetch_all(&env.pool)
                    .await?;
            let stream = env.jetstream().get_stream(STREAM).await?;
            for (partition, cursor) in cursors {
                let partition = Partition::try_from(partition as u16)?;
                let purge = stream.purge().filter(subject_filter(partition));
                purge.sequence(cursor as u64 + 1).await?;
            }
            replace_workers(env).await?;
            send_everywhere(env, &idle, "after").await?;
            Ok(())
        })
        .await?;
    ensure_in_time(&verdict)?;
    ensure_no_reset(&env).await?;
    held(verdict, [])
}

/// A tenant that posted last in its partitions is deleted with all its webhooks. Workers are
/// restarted, and other tenants post in these partitions.
pub async fn tenant_deleted(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::start(SIZE).await?;
    let runner = Runner { repeats: false, ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, _| {
            let gone = env.connect_as(|new| new.agent = Some(agent_id())).await?;
            send_everywhere(env, &gone, "before").await?;
            let id = gone.connection.to_string();
            env.run_tidegate(&["connections", "delete", &id, "--yes"]).await?;
            replace_workers(env).await?;
            let others = (0..8).map(async |_| {
                let other = env.connect_as(|new| new.agent = Some(agent_id())).await?;
                send_everywhere(env, &other, "after").await
            });
            futures_util::future::try_join_all(others).await?;
            let left: i64 = sqlx::query_scalar(
                "select (select count(*) from deliveries where connection_id = $1)
                      + (select count(*) from outbox where connection_id = $1)",
            )
            .bind(&id)
            .fetch_one(&env.pool)
            .await?;
            ensure!(left == 0, "{left} rows of the deleted tenant are left");
            Ok(())
        })
        .await?;
    ensure_in_time(&verdict)?;
    ensure_no_reset(&env).await?;
    held(verdict, [])
}

async fn last_sequence(env: &TestEnv) -> anyhow::Result<u64> {
    Ok(env.jetstream().get_stream(STREAM).await?.cached_info().state.last_sequence)
}

/// Checks that no stream reset was detected.
async fn ensure_no_reset(env: &TestEnv) -> anyhow::Result<()> {
    let raised = "select count(*) from partition_cursors where generation > 1";
    let raised: i64 = sqlx::query_scalar(raised).fetch_one(&env.pool).await?;
    ensure!(
        raised == 0 && !env.logs().contains(ALARM),
        "a stream reset was detected in {raised} partitions"
    );
    Ok(())
}
