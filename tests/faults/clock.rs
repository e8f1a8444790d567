//! Clocks that are wrong.

use crate::{
    Run,
    rows::Outcome,
    trial::{Trial, held},
};
use anyhow::ensure;
use std::path::Path;
use tests::{
    slack::webhook::Webhook,
    strike::CALM,
    world::{Size, World},
};

const LIBRARIES: [&str; 4] = [
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketime.so.1",
    "/usr/lib/faketime/libfaketime.so.1",
    "/usr/local/lib/faketime/libfaketime.so.1",
];

/// One ingest's clock is ten minutes ahead: it takes nothing that Slack signs now, and says why; the other takes all of it.
pub async fn skewed(_: Run) -> anyhow::Result<Outcome> {
    let Some(library) = LIBRARIES.into_iter().find(|path| Path::new(path).is_file()) else {
        return Ok(Outcome::Skipped(
            "there is no libfaketime here (apt-get install libfaketime)".into(),
        ));
    };
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
