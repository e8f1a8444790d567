//! Measurements of backlogs and cold connections: the rate while a backlog is processed, and the
//! statements and memory for a connection that no worker has cached.

use crate::{
    client::number,
    interleaved::Series,
    machine::own_memory,
    report::{Bound::*, Report},
    tenants::{Tenant, Tenants},
    worker_fixture::WorkerFixture,
};
use anyhow::ensure;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::{sync::Arc, time::Duration};
use tests::{eventually::try_eventually, provision::agent_id};

/// Size of a small event in bytes, like most events of Slack.
const BYTES: usize = 700;
/// Number of concurrent webhooks while memory is measured, and of webhooks before the measurement.
const AT_ONCE: usize = 64;
const WARM_UP: usize = 2_000;

/// Measures the rate of two workers over a backlog.
pub async fn drain(report: &mut Report, full: bool) -> anyhow::Result<()> {
    report.part("backlog");
    let count = if full { 1_000_000 } else { 250_000 };
    let mut fixture = WorkerFixture::start().await?;
    fixture.room(if full { 2 << 30 } else { 1 << 30 }).await?;
    let first = fixture.last_sequence().await?;
    let last = fixture.publish_events(count, BYTES).await?;
    fixture.workers(2).await?;
    let tenths = fixture.wait_until_processed(first, last).await?.tenths();
    // Two workers start in the first tenth.
    let settled: Series = tenths[1..].iter().copied().collect();
    let slowest = tenths[1..].iter().copied().fold(f64::INFINITY, f64::min);
    let (early, late): (Series, Series) =
        (tenths[1..4].iter().copied().collect(), tenths[7..].iter().copied().collect());
    report.ratio("last three tenths, to the second to fourth", late.median() / early.median());
    report.ratio_target(
        "slowest tenth, to the median tenth",
        slowest / settled.median(),
        AtLeast(0.8),
    );
    report.figure(format!("{count} webhooks, 2 workers"), settled.median(), "/s");
    Ok(())
}

/// Measures a connection that no worker has cached. Decisions always query Postgres; calls to its
/// agent and to Slack need its row.
pub async fn hydration(report: &mut Report, full: bool) -> anyhow::Result<()> {
    report.part("hydration");
    let count = if full { 15_000 } else { 3_000 };
    let mut fixture = WorkerFixture::start_with(Tenants::with_messages).await?;
    let env = &fixture.env;
    let cold: Vec<_> = stream::iter(0..count)
        .map(|_| env.prepare_as(|new| new.agent = Some(agent_id())))
        .buffer_unordered(4)
        .try_collect()
        .await?;
    let (cold, warm) = (Tenants::of(&cold).with_messages(), Arc::clone(&fixture.tenants));
    fixture.workers(1).await?;
    let pid = fixture.env.workers[0].process.pid();
    in_small_groups(&fixture, warm.all().iter().cycle().take(WARM_UP)).await?;
    let before = own_memory(pid);
    in_small_groups(&fixture, cold.all().iter()).await?;
    let each = own_memory(pid).saturating_sub(before) as f64 / count as f64;
    report.figure(format!("own memory per hydrated connection, of {count}"), each, "bytes");

    let env = &fixture.env;
    // Postgres logs all statements from here on.
    sqlx::query("alter system set log_statement = 'all'").execute(&env.pool).await?;
    sqlx::query("select pg_reload_conf()").execute(&env.pool).await?;
    let log = || env.postgres.process().log();
    let app = env.prepare_as(|new| new.agent = Some(agent_id())).await?;
    try_eventually("Postgres logs statements", Duration::from_secs(30), async || {
        log().contains("-- leases.renew").then_some(())
    })
    .await?;
    let one = Tenants::of([&app]).with_messages();
    let mut statements = [0; 2];
    for count in &mut statements {
        let before = log().matches("-- connections.load").count();
        let first = fixture.last_sequence().await?;
        let last = fixture.publish([one.envelope(number(), BYTES)].into_iter()).await?;
        fixture.wait_until_processed(first, last).await?;
        fixture.wait_until_sent().await?;
        *count = log().matches("-- connections.load").count() - before;
    }
    ensure!(statements[0] > 0, "no statement loaded the cold connection");
    report.figure("statements for a warm connection", statements[1] as f64, "");
    report.figure("statements for a cold connection", statements[0] as f64, "");
    // A session that has not run the statement yet prepares it first.
    let trips = statements[0] as f64 + 1.0;
    report.target("round trips that a cold connection adds, at most", trips, AtMost(2.0), "");
    Ok(())
}

/// Sends a webhook for each connection, in small groups, so that only the memory of cached
/// connections grows, not that of concurrent webhooks.
async fn in_small_groups(
    fixture: &WorkerFixture,
    mut tenants: impl Iterator<Item = &Tenant>,
) -> anyhow::Result<()> {
    loop {
        let group: Vec<_> = tenants.by_ref().take(AT_ONCE).collect();
        if group.is_empty() {
            return Ok(());
        }
        let first = fixture.last_sequence().await?;
        let webhooks = group.iter().map(|tenant| tenant.envelope(number(), BYTES));
        let last = fixture.publish(webhooks).await?;
        fixture.wait_until_processed(first, last).await?;
        fixture.wait_until_sent().await?;
    }
}
