//! Panics in every stage of a worker: once at some webhooks, and always at one webhook per stage,
//! which then becomes a dead letter or a failed message.

use crate::{
    Run,
    matrix::Outcome,
    runner::{Runner, ensure_in_time, held},
};
use anyhow::ensure;
use std::time::Duration;
use tests::{
    binaries::Binaries,
    eventually::try_eventually,
    slack::webhook::Webhook,
    test_env::{App, Size, TIMEOUT, TestEnv},
};

/// Stages with the reason of the dead letter of a webhook at which the stage always panics.
const STAGES: [(&str, &str); 3] = [
    ("parse", "the process ended during the decision"),
    ("decide", "the decision panicked"),
    ("attempt", "attempts ended without an outcome"),
];
/// Maximum stall of a partition until claims without progress identify the webhook at which parsing
/// panics.
const FOUND_WITHIN: Duration = Duration::from_secs(10);

/// No worker ends. A webhook at which a stage panics once takes effect once. A webhook at which a
/// stage always panics is given up, and later messages of its conversation are processed. A redrive
/// of it fails.
pub async fn in_every_stage(_: Run) -> anyhow::Result<Outcome> {
    let mut env =
        TestEnv::without_processes(Size { ingests: 2, workers: 0, own_postgres: true }).await?;
    env.start_processes().await?;
    let program = Binaries::get()?.program("panics")?;
    for _ in 0..3 {
        env.start_worker_of(&program)?;
    }
    env.wait_until_balanced().await?;
    let runner = Runner { repeats: false, ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, app| {
            let mut after = Vec::new();
            for (stage, _) in STAGES {
                let channel = format!("D9{stage}").to_uppercase();
                send_message(env, app, &channel, &format!("panic:{stage}")).await?;
                after.push(send_message(env, app, &channel, "after it").await?);
            }
            send_message(env, app, "D9SEND", "panic:send").await?;
            after.push(send_message(env, app, "D9SEND", "after it").await?);
            for webhook in &after {
                env.try_wait_for_outcome(&webhook.dedup_key).await?;
            }
            let failed = "select error from outbox_failures";
            let failed =
                try_eventually("the message whose send panics has failed", TIMEOUT, async || {
                    sqlx::query_scalar::<_, String>(failed).fetch_optional(&env.pool).await.ok()?
                })
                .await?;
            ensure!(
                failed == "the send panicked",
                "the message failed with another error: {failed}"
            );
            redrive_again(env).await
        })
        .await?;
    ensure_in_time(&verdict)?;
    ensure!(verdict.worst_gap < FOUND_WITHIN, "{verdict}");
    for worker in &env.workers {
        ensure!(worker.process.is_running(), "worker {} ended by a panic", worker.id);
    }
    let logs = env.logs();
    let once = |stage: &str| logs.matches(&format!("probe: {stage}, once")).count();
    let counts = ["parse", "attempt", "send"].map(|stage| (stage, once(stage)));
    ensure!(counts.iter().all(|(_, count)| *count > 0), "a stage had no single panic: {counts:?}");
    let counts: Vec<String> = counts.iter().map(|(stage, n)| format!("{stage} {n}")).collect();
    held(verdict, [format!("panicked once: {}", counts.join(", "))])
}

async fn send_message(
    env: &TestEnv,
    app: &App,
    channel: &str,
    text: &str,
) -> anyhow::Result<Webhook> {
    let webhook = Webhook::message(&env.slack, app, channel, "U1", text);
    let answer = env.send(app, &webhook).await?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(webhook)
}

/// Waits until the webhook of each stage is a dead letter with the reason of the stage, before and
/// after a redrive.
async fn redrive_again(env: &TestEnv) -> anyhow::Result<()> {
    let args = ["dead-letters", "redrive", "--all", "--yes"];
    for redriven in [false, true] {
        if redriven {
            // The command fails, because all redrives fail.
            let _failed = env.run_tidegate(&args).await;
        }
        for (stage, reason) in STAGES {
            try_eventually(&format!("{stage}: {reason}"), TIMEOUT, async || {
                let dead = env.dead_letters().await.ok()?;
                let dead = dead.iter().find(|dead| dead.reason == reason)?;
                (dead.redrive_at.is_none()).then_some(())
            })
            .await?;
        }
    }
    Ok(())
}
