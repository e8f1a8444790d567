//! Faults of the stream, by an administrator or a failing disk: deleted, truncated, purged.

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
/// Messages that are handled before the fault and resent after it.
const COPIES: usize = 5;
/// Time after the stream is restored in which refused webhooks are resent and workers find it.
const READ_AGAIN: Duration = Duration::from_secs(5);

/// Ingest is stopped, all webhooks in the stream are handled, the stream is deleted, and the
/// operator's command recreates it. Webhooks that are refused meanwhile are resent. Copies of
/// handled webhooks are accepted, because only Postgres knows them, and have no second effect.
/// Webhooks that a stream loses before they are handled are lost.
pub async fn deleted(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::start(SIZE).await?;
    let (mut copies, mut away, mut taken_again) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    let runner = Runner { users: 4, repeats: false, ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, app| {
            let say = |text: &str| Webhook::message(&env.slack, app, "D9500", "U1", text);
            for n in 0..COPIES {
                copies.push(say(&format!("before {n}")));
                send_until_accepted(env, app, &copies[n]).await?;
            }
            let closed = Instant::now();
            env.change_stream(|stream| stream.max_messages = 1).await?;
            env.wait_until_processed(TIMEOUT).await?;
            env.jetstream().delete_stream(STREAM).await?;
            tokio::time::sleep(CALM).await;
            let answer = env.send(app, &say("into nothing")).await?;
            ensure!(answer.status == 503, "without a stream: {answer:?}");
            env.run_tidegate(&["migrate"]).await?;
            away = closed.elapsed();
            let made = Instant::now();
            for copy in &copies {
                send_until_accepted(env, app, copy).await?;
            }
            taken_again = made.elapsed();
            // Behind them in their conversation: once it is handled, they were handled.
            let last = say("the last");
            send_until_accepted(env, app, &last).await?;
            env.try_wait_for_outcome(&last.dedup_key).await?;
            Ok(())
        })
        .await?;
    ensure_in_time(&verdict)?;
    ensure!(verdict.notified > 0, "no command was told that it was not taken: {verdict}");
    ensure!(verdict.rejected > 0, "nothing was turned away: {verdict}");
    ensure!(verdict.worst_gap < away + READ_AGAIN, "away for {away:?}: {verdict}");
    let (told, asked) = (env.slack.receipts(), env.agent.requests());
    for (n, copy) in copies.iter().enumerate() {
        let answer = format!("I heard: before {n}");
        let told = told.iter().filter(|receipt| receipt.text() == answer).count();
        let asked = asked.iter().filter(|asked| asked.question["text"] == copy.what).count();
        ensure!((told, asked) == (1, 1), "{answer}: told {told} times, asked {asked} times");
    }
    env.wait_for_log(ALARM).await?;
    let raised = "select count(*) from partition_cursors where generation = 2";
    try_eventually("every partition reads the new stream", TIMEOUT, async || {
        let raised: i64 = sqlx::query_scalar(raised).fetch_one(&env.pool).await.ok()?;
        (raised == 64).then_some(())
    })
    .await?;
    let (away, ms) = (away.as_secs_f64(), taken_again.as_millis());
    let notes = format!("{away:.1} s away, {COPIES} copies without effect within {ms} ms");
    held(verdict, [notes])
}

/// The stream is restored to an earlier state and gets other messages in place of the lost ones,
/// past the cursors, before a worker reads it. All lost messages had been handled.
pub async fn truncated(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::start(SIZE).await?;
    let mut lost = 0;
    let runner = Runner { drained_within: Duration::from_secs(90), ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, _| {
            env.nats.save().await?;
            let before = last_sequence(env).await?;
            tokio::time::sleep(2 * CALM).await;
            env.change_stream(|stream| stream.max_messages = 1).await?; // nothing more is let in
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
    ensure!(lost > 20, "only {lost} messages were lost: nothing was proved");
    env.wait_for_log(ALARM).await?;
    held(verdict, [format!("the last {lost} messages were lost, and others came in their place")])
}

/// The same beside running workers, which have read idle partitions up to the end of the stream:
/// messages at the lost sequences are handled.
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
            // Readers that are opened again look up the end.
            env.nats.kill();
            env.nats.restart().await?;
            tokio::time::sleep(CALM).await;
            env.change_stream(|stream| stream.max_messages = 1).await?; // nothing more is let in
            env.wait_until_processed(TIMEOUT).await?;
            lost = last_sequence(env).await? - before;
            env.nats.restore().await?;
            send_everywhere(env, &idle, "after").await?;
            Ok(())
        })
        .await?;
    ensure_in_time(&verdict)?;
    ensure!(lost > 50, "only {lost} messages were lost: nothing was proved");
    env.wait_for_log(ALARM).await?;
    held(verdict, [format!("the last {lost} messages were lost, and others came in their place")])
}

/// Everything committed is purged, and workers are replaced: the missing last message of a
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

/// A tenant posts last in its partitions and is deleted with all its webhooks. Workers are
/// replaced, and other tenants post there.
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
            ensure!(left == 0, "{left} rows of a deleted tenant are left");
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
    ensure!(raised == 0 && !env.logs().contains(ALARM), "{raised} partitions read another stream");
    Ok(())
}
