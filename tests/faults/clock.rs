//! Processes with wrong clocks.

use crate::{
    Run,
    matrix::Outcome,
    runner::{Runner, TAKEN_OVER, held},
};
use anyhow::ensure;
use tests::{
    fake_time,
    fault::CALM,
    slack::{
        fault_injection::{Fault, FaultRule},
        webhook::Webhook,
    },
    test_env::{Size, TestEnv},
};

fn missing() -> anyhow::Result<Outcome> {
    Ok(Outcome::Skipped(fake_time::MISSING.into()))
}

/// One worker's clock is an hour ahead, another's an hour behind. Only the clocks of Postgres and
/// the stream matter.
pub async fn workers_skewed(_: Run) -> anyhow::Result<Outcome> {
    if fake_time::settings("+1h").is_none() {
        return missing();
    }
    let size = Size { ingests: 2, workers: 0, own_postgres: true };
    let mut env = TestEnv::without_processes(size).await?;
    env.start_processes().await?;
    for off in ["+1h", "-1h"] {
        env.set_clock(off);
        env.start_worker().await?;
    }
    env.wait_until_balanced().await?;
    let verdict = Runner::default()
        .run_in(&env, async |env, app| {
            // Messages that Slack accepted without an answer are reconciled.
            let cut = FaultRule::new(Fault::Cut).on("chat.postMessage").with_token(&app.token);
            env.slack.inject_fault(cut.times(12).after_effect());
            tokio::time::sleep(CALM).await;
            env.workers[0].process.kill();
            env.workers[0].process.restart()?;
            env.wait_until_balanced().await
        })
        .await?;
    ensure!(verdict.rejected == 0, "{} requests were rejected: {verdict}", verdict.rejected);
    ensure!(verdict.worst_gap < TAKEN_OVER, "{verdict}");
    ensure!(verdict.repeated == 0, "messages that Slack had accepted were sent again: {verdict}");
    held(verdict, [])
}

/// One ingest's clock is ten minutes ahead: it rejects current signatures. The other ingest accepts
/// them.
pub async fn skewed(_: Run) -> anyhow::Result<Outcome> {
    if fake_time::settings("+10m").is_none() {
        return missing();
    }
    let mut env =
        TestEnv::without_processes(Size { ingests: 1, workers: 2, own_postgres: true }).await?;
    env.start_processes().await?;
    let verdict = Runner { users: 0, ..Runner::default() };
    let verdict = verdict
        .run_in(&env, async |_, _| {
            tokio::time::sleep(CALM).await;
            Ok(())
        })
        .await?;
    env.set_clock("+10m");
    env.start_ingest().await?;
    let app = env.connect().await?;
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    let skewed = &env.ingests[1];
    let answer = env.slack.send(&skewed.url(&app), &app.secret, &webhook).await?;
    ensure!(answer.status == 401, "an ingest whose clock is ten minutes ahead answered {answer:?}");
    let right = env.slack.send(&env.ingests[0].url(&app), &app.secret, &webhook).await?;
    ensure!(right.status == 200, "{right:?}");
    held(verdict, [])
}
