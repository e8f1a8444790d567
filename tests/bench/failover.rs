//! How long a partition stands still when its worker is killed, or told to go.
//!
//! Messages come at an even rate for all partitions, and their agents are paused: the longest that one of them waited to be
//! committed as a delivery is the worst stall of any.

use crate::{
    client::Pace,
    report::{Bound::*, Report},
    tenants::{Tenants, number_of},
    turns::Series,
    workshop::Workshop,
};
use anyhow::{Context, ensure};
use sqlx::Row;
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tests::{
    until::try_until,
    world::{LEASE_TTL, SOON},
};
use tokio::task::JoinSet;

const RATE: f64 = 300.0;
const ROUNDS: usize = 3;
/// Load before the blow, in which all is well.
const BEFORE: Duration = Duration::from_secs(1);

/// kill -9, and SIGTERM.
pub async fn stalls(report: &mut Report) -> anyhow::Result<()> {
    report.part("failover");
    let mut workshop = Workshop::start_with(Tenants::with_messages).await?;
    workshop.pause_agents().await?;
    let ttl = LEASE_TTL.as_secs_f64();
    let (mut killed, mut told) = (Series::default(), Series::default());
    for _ in 0..ROUNDS {
        workshop.workers(2).await?;
        killed.push(
            stall(&workshop, LEASE_TTL + Duration::from_secs(2), |workshop| {
                running(workshop).process.kill();
            })
            .await?,
        );
        workshop.workers(2).await?;
        told.push(
            stall(&workshop, Duration::from_secs(2), |workshop| {
                running(workshop).process.terminate();
            })
            .await?,
        );
        try_until("the one told to go has gone", SOON, async || {
            let running = workshop.world.workers.iter().filter(|w| w.process.is_running());
            (running.count() == 1).then_some(())
        })
        .await?;
    }
    let name = "worst partition stall after kill -9 of a worker";
    report.target(name, killed.max(), AtMost(ttl + 1.0), "s");
    report.target("worst partition stall after SIGTERM", told.max(), AtMost(0.5), "s");
    report.ratio("worst stall after kill -9, to the lease's time to live", killed.max() / ttl);
    report.figure("stall after kill -9, median round", killed.median(), "s");
    report.figure("stall after SIGTERM, median round", told.median(), "s");
    Ok(())
}

fn running(workshop: &Workshop) -> &tests::world::Worker {
    let mut running = workshop.world.workers.iter().filter(|w| w.process.is_running());
    running.next().expect("two of them run")
}

async fn stall(
    workshop: &Workshop,
    after: Duration,
    blow: impl FnOnce(&Workshop),
) -> anyhow::Result<f64> {
    let (wall, steady) = (SystemTime::now(), Instant::now());
    let first = workshop.last_sequence().await?;
    let pace = Pace::start(RATE, BEFORE + after);
    let mut publishing = JoinSet::new();
    let schedule = pace.schedule;
    for _ in 0..32 {
        let (js, pace) = (workshop.js.clone(), Arc::clone(&pace));
        let tenants = Arc::clone(&workshop.tenants);
        publishing.spawn(async move {
            while let Some((_, number)) = pace.next().await {
                let e = tenants.envelope(number, 700);
                js.publish_with_headers(e.subject(), e.headers(), e.body).await?.await?;
            }
            anyhow::Ok(())
        });
    }
    tokio::time::sleep(BEFORE).await;
    blow(workshop);
    while let Some(ended) = publishing.join_next().await {
        ended??;
    }
    workshop.committed(workshop.last_sequence().await?).await?;
    let rows = sqlx::query(
        "select dedup_key, extract(epoch from inserted_at)::float8 as at from deliveries where sequence > $1",
    )
    .bind(first as i64)
    .fetch_all(&workshop.world.pool)
    .await?;
    ensure!(rows.len() as u64 == schedule.count, "{} of {}", rows.len(), schedule.count);
    let mut worst: f64 = 0.0;
    for row in rows {
        let number = number_of(row.try_get("dedup_key")?).context("one of ours")?;
        let due = schedule.due(number).context("of this round")? - steady;
        let due = (wall.duration_since(UNIX_EPOCH)? + due).as_secs_f64();
        worst = worst.max(row.try_get::<f64, _>("at")? - due);
    }
    Ok(worst)
}
