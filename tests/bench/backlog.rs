//! Much that waits, and much that is cold: a backlog is worked off at a flat rate; a connection that nobody knows yet costs
//! a query, and some memory.

use crate::{
    client::number,
    machine::own_memory,
    report::{Bound::*, Report},
    tenants::{Tenant, Tenants},
    turns::Series,
    workshop::Workshop,
};
use anyhow::ensure;
use futures_util::{StreamExt, TryStreamExt, stream};
use std::{sync::Arc, time::Duration};
use tests::{provision::agent_id, until::try_until};

/// A small event, as most of Slack's are.
const BYTES: usize = 700;
/// Webhooks under way at once, where memory is looked at, and how many come before.
const AT_ONCE: usize = 64;
const WARM_UP: usize = 2_000;

/// Worked off by two workers.
pub async fn drain(report: &mut Report, full: bool) -> anyhow::Result<()> {
    report.part("backlog");
    let count = if full { 1_000_000 } else { 250_000 };
    let mut workshop = Workshop::start().await?;
    workshop.room(if full { 2 << 30 } else { 1 << 30 }).await?;
    let first = workshop.last_sequence().await?;
    let last = workshop.publish_events(count, BYTES).await?;
    workshop.workers(2).await?;
    let tenths = workshop.drained(first, last).await?.tenths();
    // The first tenth has two workers starting in it.
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

/// A connection that no worker has in memory: decisions ask Postgres in any case, and calls to its agent and Slack need its row.
pub async fn hydration(report: &mut Report, full: bool) -> anyhow::Result<()> {
    report.part("hydration");
    let count = if full { 15_000 } else { 3_000 };
    let mut workshop = Workshop::start_with(Tenants::with_messages).await?;
    let world = &workshop.world;
    let cold: Vec<_> = stream::iter(0..count)
        .map(async |_| {
            let app = world.prepare_as(|new| new.agent = Some(agent_id())).await?;
            anyhow::Ok((app.connection, app.secret))
        })
        .buffer_unordered(4)
        .try_collect()
        .await?;
    let (cold, warm) = (Tenants::of(cold).with_messages(), Arc::clone(&workshop.tenants));
    workshop.workers(1).await?;
    let pid = workshop.world.workers[0].process.pid();
    in_small_groups(&workshop, warm.all().iter().cycle().take(WARM_UP)).await?;
    let before = own_memory(pid);
    in_small_groups(&workshop, cold.all().iter()).await?;
    let each = own_memory(pid).saturating_sub(before) as f64 / count as f64;
    report.figure(format!("own memory per hydrated connection, of {count}"), each, "bytes");

    let world = &workshop.world;
    // Postgres itself says what it is asked, from now on.
    sqlx::query("alter system set log_statement = 'all'").execute(&world.pool).await?;
    sqlx::query("select pg_reload_conf()").execute(&world.pool).await?;
    let log = || world.postgres.process().log();
    let app = world.prepare_as(|new| new.agent = Some(agent_id())).await?;
    try_until("Postgres logs statements", Duration::from_secs(30), async || {
        log().contains("-- leases.renew").then_some(())
    })
    .await?;
    let one = Tenants::of([(app.connection, app.secret)]).with_messages();
    let mut asked = [0; 2];
    for asked in &mut asked {
        let before = log().matches("-- connections.hydrate").count();
        let first = workshop.last_sequence().await?;
        let last = workshop.publish([one.envelope(number(), BYTES)].into_iter()).await?;
        workshop.drained(first, last).await?;
        workshop.said().await?;
        *asked = log().matches("-- connections.hydrate").count() - before;
    }
    ensure!(asked[0] > 0, "a cold connection is asked for");
    report.figure("statements for a warm connection", asked[1] as f64, "");
    report.figure("statements for a cold connection", asked[0] as f64, "");
    // A session that never ran the statement prepares it first.
    let trips = asked[0] as f64 + 1.0;
    report.target("round trips that a cold connection adds, at most", trips, AtMost(2.0), "");
    Ok(())
}

/// A webhook from each of these, few at a time: what a worker holds for those under way stays the same, and does not hide what it
/// keeps of connections.
async fn in_small_groups(
    workshop: &Workshop,
    mut tenants: impl Iterator<Item = &Tenant>,
) -> anyhow::Result<()> {
    loop {
        let group: Vec<_> = tenants.by_ref().take(AT_ONCE).collect();
        if group.is_empty() {
            return Ok(());
        }
        let first = workshop.last_sequence().await?;
        let webhooks = group.iter().map(|tenant| tenant.envelope(number(), BYTES));
        let last = workshop.publish(webhooks).await?;
        workshop.drained(first, last).await?;
        workshop.said().await?;
    }
}
