//! Clocks that are wrong.

use crate::{
    Run,
    rows::Outcome,
    trial::{TAKEN_OVER, Trial, held},
};
use anyhow::ensure;
use std::path::Path;
use tests::{
    slack::{
        trouble::{Fault, Trouble},
        webhook::Webhook,
    },
    strike::CALM,
    world::{Size, World},
};

const LIBRARIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
    "/usr/local/lib/faketime/libfaketime.so.1",
];

fn library() -> Option<&'static str> {
    LIBRARIES.into_iter().find(|path| Path::new(path).is_file())
}

fn missing() -> anyhow::Result<Outcome> {
    Ok(Outcome::Skipped("there is no libfaketime here (apt-get install libfaketime)".into()))
}

/// One worker's clock is an hour ahead, another's an hour behind: only Postgres's and the stream's count.
pub async fn workers_skewed(_: Run) -> anyhow::Result<Outcome> {
    let Some(library) = library() else { return missing() };
    let size = Size { ingests: 2, workers: 0, own_postgres: true };
    let mut world = World::without_processes(size).await?;
    world.start_processes().await?;
    world.set("LD_PRELOAD", library);
    world.set("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    for off in ["+1h", "-1h"] {
        world.set("FAKETIME", off);
        world.start_worker().await?;
    }
    world.settled().await?;
    let verdict = Trial::default()
        .in_world(&world, async |world, app| {
            // Slack is asked for what it took without an answer.
            let cut = Trouble::new(Fault::Cut).on("chat.postMessage").with_token(&app.token);
            world.slack.trouble(cut.times(12).after_the_fact());
            tokio::time::sleep(CALM).await;
            world.workers[0].process.kill();
            world.workers[0].process.restart()?;
            world.settled().await
        })
        .await?;
    ensure!(verdict.turned_away == 0, "{} were turned away: {verdict}", verdict.turned_away);
    ensure!(verdict.worst_gap < TAKEN_OVER, "{verdict}");
    ensure!(verdict.repeated == 0, "what Slack had taken was not found there: {verdict}");
    held(verdict, [])
}

/// One ingest's clock is ten minutes ahead: it takes nothing that Slack signs now, and says why; the other takes all of it.
pub async fn skewed(_: Run) -> anyhow::Result<Outcome> {
    let Some(library) = library() else { return missing() };
    let mut world =
        World::without_processes(Size { ingests: 1, workers: 2, own_postgres: true }).await?;
    world.start_processes().await?;
    let verdict = Trial { users: 0, ..Trial::default() };
    let verdict = verdict
        .in_world(&world, async |_, _| {
            tokio::time::sleep(CALM).await;
            Ok(())
        })
        .await?;
    for (name, value) in
        [("LD_PRELOAD", library), ("FAKETIME", "+10m"), ("FAKETIME_DONT_FAKE_MONOTONIC", "1")]
    {
        world.set(name, value);
    }
    world.start_ingest().await?;
    let app = world.connect().await?;
    let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "hello");
    let skewed = &world.ingests[1];
    let answer = world.slack.send(&skewed.url(&app), &app.secret, &webhook).await?;
    ensure!(answer.status == 401, "ten minutes off, and {answer:?}");
    let right = world.slack.send(&world.ingests[0].url(&app), &app.secret, &webhook).await?;
    ensure!(right.status == 200, "{right:?}");
    held(verdict, [])
}
