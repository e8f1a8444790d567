//! Three nats-servers, every webhook on each: what a leader's death costs, and that nothing accepted is lost by it.

use crate::{
    Run,
    rows::Outcome,
    trial::{SIZE, Trial, held, in_time},
};
use anyhow::{Context, ensure};
use shared::stream::STREAM;
use std::time::Duration;
use tests::{checker::Verdict, nats::Nats, strike::CALM, until::try_until, world::World};

const SERVERS: usize = 3;
/// An election takes 4 to 9 s, and this machine is slow.
const GAP_MAX: Duration = Duration::from_secs(20);
const ELECTED_WITHIN: Duration = Duration::from_secs(30);

fn trial() -> Trial {
    Trial { users: 6, drained_within: Duration::from_secs(120), ..Trial::default() }
}

/// The server that leads the stream.
async fn leader(world: &World) -> anyhow::Result<&Nats> {
    let named = async || {
        let js = async_nats::jetstream::new(world.client().clone());
        let info = js.get_stream(STREAM).await.ok()?.cached_info().cluster.clone()?;
        let name = info.leader?;
        servers(world).find(|nats| nats.server_name() == name)
    };
    try_until("the stream has a leader", ELECTED_WITHIN, named).await
}

fn servers(world: &World) -> impl Iterator<Item = &Nats> {
    std::iter::once(&world.nats).chain(&world.replicas)
}

fn judged(verdict: Verdict) -> anyhow::Result<Outcome> {
    in_time(&verdict)?;
    ensure!(verdict.worst_gap < GAP_MAX, "{verdict}");
    let notes = [format!(
        "{} of {} tries turned away, slowest answer {:.1} s",
        verdict.turned_away,
        verdict.attempts,
        verdict.slowest.as_secs_f64()
    )];
    held(verdict, notes)
}

pub async fn leader_killed(_: Run) -> anyhow::Result<Outcome> {
    let world = World::on_cluster(SIZE, SERVERS).await?;
    let verdict = trial()
        .in_world(&world, async |world, _| {
            let leader = leader(world).await?;
            leader.kill();
            tokio::time::sleep(Duration::from_secs(10)).await;
            leader.restart().await?;
            leader.healthy().await
        })
        .await?;
    judged(verdict)
}

/// As an upgrade does it: one after the other, each healthy again before the next.
pub async fn lame_ducks(_: Run) -> anyhow::Result<Outcome> {
    let world = World::on_cluster(SIZE, SERVERS).await?;
    let verdict = trial()
        .in_world(&world, async |world, _| {
            for nats in servers(world) {
                nats.lame_duck();
                let gone = nats.process().wait(Duration::from_secs(90)).await;
                gone.context("a lame duck ends")?;
                nats.restart().await?;
                nats.healthy().await?;
                tokio::time::sleep(CALM).await;
            }
            Ok(())
        })
        .await?;
    judged(verdict)
}

/// It holds its connections and answers nothing.
pub async fn one_frozen(_: Run) -> anyhow::Result<Outcome> {
    let world = World::on_cluster(SIZE, SERVERS).await?;
    let verdict = trial()
        .in_world(&world, async |world, _| {
            let leader = leader(world).await?;
            leader.freeze();
            tokio::time::sleep(Duration::from_secs(12)).await;
            leader.thaw();
            leader.healthy().await
        })
        .await?;
    judged(verdict)
}
