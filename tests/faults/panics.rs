//! Panics in every stage of a worker: once at some webhooks, and always at some others, of which each stage gives up its own.

use crate::{
    Run,
    rows::Outcome,
    trial::{Trial, held, in_time},
};
use anyhow::ensure;
use std::time::Duration;
use tests::{
    binaries::Binaries,
    slack::webhook::Webhook,
    until::try_until,
    world::{App, SOON, Size, World},
};

/// The stages, and the reason for which each gives a webhook up at which it always panics.
const STAGES: [(&str, &str); 3] = [
    ("parse", "its process ended when it was decided"),
    ("decide", "deciding it panicked"),
    ("attempt", "its attempts ended without an outcome"),
];
/// A partition stands still while a webhook at which parsing panics is found, by claims without progress.
const FOUND_WITHIN: Duration = Duration::from_secs(10);

/// No worker ends by it, and what panics once is done once; what always panics is given up, and what comes after it in its
/// conversation is done. A dead letter that is redriven and panics again stays one.
pub async fn in_every_stage(_: Run) -> anyhow::Result<Outcome> {
    let mut world =
        World::without_processes(Size { ingests: 2, workers: 0, own_postgres: true }).await?;
    world.start_processes().await?;
    let program = Binaries::get()?.program("panics")?;
    for _ in 0..3 {
        world.start_worker_of(&program)?;
    }
    world.settled().await?;
    let trial = Trial { repeats: false, ..Trial::default() };
    let verdict = trial
        .in_world(&world, async |world, app| {
            let mut after = Vec::new();
            for (stage, _) in STAGES {
                let channel = format!("D9{stage}").to_uppercase();
                say(world, app, &channel, &format!("panic:{stage}")).await?;
                after.push(say(world, app, &channel, "after it").await?);
            }
            say(world, app, "D9SEND", "panic:send").await?;
            after.push(say(world, app, "D9SEND", "after it").await?);
            for webhook in &after {
                world.try_handled(&webhook.dedupe).await?;
            }
            let failed = "select error from outbox_failures";
            let failed =
                try_until("the message that can't be sent is given up", SOON, async || {
                    sqlx::query_scalar::<_, String>(failed)
                        .fetch_optional(&world.pool)
                        .await
                        .ok()?
                })
                .await?;
            ensure!(failed == "the send panicked", "given up: {failed}");
            redriven_again(world).await
        })
        .await?;
    in_time(&verdict)?;
    ensure!(verdict.worst_gap < FOUND_WITHIN, "{verdict}");
    for worker in &world.workers {
        ensure!(worker.process.is_running(), "{} ended by a panic", worker.id);
    }
    let logs = world.logs();
    let once = |stage: &str| logs.matches(&format!("probe: {stage}, once")).count();
    let counts = ["parse", "attempt", "send"].map(|stage| (stage, once(stage)));
    ensure!(counts.iter().all(|(_, count)| *count > 0), "too few panics: {counts:?}");
    let counts: Vec<String> = counts.iter().map(|(stage, n)| format!("{stage} {n}")).collect();
    held(verdict, [format!("panicked once: {}", counts.join(", "))])
}

async fn say(world: &World, app: &App, channel: &str, text: &str) -> anyhow::Result<Webhook> {
    let webhook = Webhook::message(&world.slack, app, channel, "U1", text);
    let answer = world.send(app, &webhook).await?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(webhook)
}

/// Every stage's webhook is a dead letter for its reason, also after all of them were redriven.
async fn redriven_again(world: &World) -> anyhow::Result<()> {
    let args = ["dead-letters", "redrive", "--all", "--yes"];
    for redriven in [false, true] {
        if redriven {
            // It says that some failed again.
            let _failed = world.operate(&args).await;
        }
        for (stage, reason) in STAGES {
            try_until(&format!("{stage}: {reason}"), SOON, async || {
                let dead = world.dead_letters().await.ok()?;
                let dead = dead.iter().find(|dead| dead.reason == reason)?;
                (dead.redrive_at.is_none()).then_some(())
            })
            .await?;
        }
    }
    Ok(())
}
