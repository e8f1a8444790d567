//! Measurement of the stalls of partitions when their worker is killed or stopped.
//!
//! Messages arrive at an even rate in all partitions, and their agents are paused. The worst stall
//! is the longest time from the due time of a message to the commit of its delivery.

use crate::{
    client::Pace,
    interleaved::Series,
    report::{Bound::*, Report},
    tenants::{Tenants, number_of},
    worker_fixture::WorkerFixture,
};
use anyhow::{Context, ensure};
use sqlx::Row;
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tests::{
    eventually::try_eventually,
    test_env::{LEASE_TTL, TIMEOUT},
};
use tokio::task::JoinSet;

const RATE: f64 = 300.0;
const ROUNDS: usize = 3;
/// Duration of the load before the fault.
const BEFORE: Duration = Duration::from_secs(1);

/// Measures the stalls after SIGKILL and SIGTERM.
pub async fn stalls(report: &mut Report) -> anyhow::Result<()> {
    report.part("failover");
    let mut fixture = WorkerFixture::start_with(Tenants::with_messages).await?;
    fixture.pause_agents().await?;
    let ttl = LEASE_TTL.as_secs_f64();
    let (mut killed, mut stopped) = (Series::default(), Series::default());
    for _ in 0..ROUNDS {
        fixture.workers(2).await?;
        killed.push(
            stall(&fixture, LEASE_TTL + Duration::from_secs(2), |fixture| {
                running(fixture).process.kill();
            })
            .await?,
        );
        fixture.workers(2).await?;
        stopped.push(
            stall(&fixture, Duration::from_secs(2), |fixture| {
                running(fixture).process.terminate();
            })
            .await?,
        );
        try_eventually("the stopped worker has ended", TIMEOUT, async || {
            let running = fixture.env.workers.iter().filter(|w| w.process.is_running());
            (running.count() == 1).then_some(())
        })
        .await?;
    }
    let name = "worst partition stall after kill -9 of a worker";
    report.target(name, killed.max(), AtMost(ttl + 1.0), "s");
    report.target("worst partition stall after SIGTERM", stopped.max(), AtMost(0.5), "s");
    report.ratio("worst stall after kill -9, to the lease's time to live", killed.max() / ttl);
    report.figure("stall after kill -9, median round", killed.median(), "s");
    report.figure("stall after SIGTERM, median round", stopped.median(), "s");
    Ok(())
}

fn running(fixture: &WorkerFixture) -> &tests::test_env::Worker {
    let mut running = fixture.env.workers.iter().filter(|w| w.process.is_running());
    running.next().expect("a running worker")
}

async fn stall(
    fixture: &WorkerFixture,
    after: Duration,
    inject: impl FnOnce(&WorkerFixture),
) -> anyhow::Result<f64> {
    let (wall, steady) = (SystemTime::now(), Instant::now());
    let first = fixture.last_sequence().await?;
    let pace = Pace::start(RATE, BEFORE + after);
    let mut publishing = JoinSet::new();
    let schedule = pace.schedule;
    for _ in 0..32 {
        let (js, pace) = (fixture.js.clone(), Arc::clone(&pace));
        let tenants = Arc::clone(&fixture.tenants);
        publishing.spawn(async move {
            while let Some((_, number)) = pace.next().await {
                let e = tenants.envelope(number, 700);
                js.publish_with_headers(e.subject(), e.headers(), e.body).await?.await?;
            }
            anyhow::Ok(())
        });
    }
    tokio::time::sleep(BEFORE).await;
    inject(fixture);
    while let Some(ended) = publishing.join_next().await {
        ended??;
    }
    fixture.wait_until_committed(fixture.last_sequence().await?).await?;
    let rows = sqlx::query(
        "select dedup_key, extract(epoch from inserted_at)::float8 as at from deliveries where sequence > $1",
    )
    .bind(first as i64)
    .fetch_all(&fixture.env.pool)
    .await?;
    ensure!(
        rows.len() as u64 == schedule.count,
        "{} of {} messages have a delivery",
        rows.len(),
        schedule.count
    );
    let mut worst: f64 = 0.0;
    for row in rows {
        let number =
            number_of(row.try_get("dedup_key")?).context("a dedup key of the benchmark")?;
        let due = schedule.due(number).context("a message of this round")? - steady;
        let due = (wall.duration_since(UNIX_EPOCH)? + due).as_secs_f64();
        worst = worst.max(row.try_get::<f64, _>("at")? - due);
    }
    Ok(worst)
}
