//! Links that hang, in one way or both, and a Postgres that is slow: through a proxy of ours, and once with a real cable.

use crate::{
    Run,
    rows::Outcome,
    trial::{SIZE, TAKEN_OVER, Trial, held, in_time},
};
use anyhow::{Context, ensure};
use std::time::Duration;
use tests::{
    checker::Verdict,
    netns::Namespace,
    proxy::{Proxy, Way},
    strike::CALM,
    world::{LEASE_TTL, Role, Server, World, agent_id},
};

/// A parted link stays so for this long: past every ping and every lease.
const PARTED: Duration = Duration::from_secs(8);
/// Longer than anybody may stand still for it.
const PARTED_LONG: Duration = Duration::from_secs(25);
/// A client of NATS notices a link that hangs after two missed pings, which it sends every two seconds.
const NOTICED: Duration = Duration::from_secs(6);
/// A statement of ours is not waited for longer than this.
const GIVEN_UP: Duration = Duration::from_secs(7);
/// A client of NATS is connected again this long after the link is whole, and reads on.
const RECONNECTED: Duration = Duration::from_secs(3);

/// A world in which the first of this role reaches this server by a link.
async fn first_linked(role: Role, server: Server) -> anyhow::Result<(World, Proxy)> {
    let mut world = World::without_processes(SIZE).await?;
    let link = world.through_link(role, server).await?;
    match role {
        Role::Ingest => world.start_ingest().await?,
        _ => world.start_worker().await?,
    }
    world.without_links();
    while world.ingests.len() < SIZE.ingests {
        world.start_ingest().await?;
    }
    while world.workers.len() < SIZE.workers {
        world.start_worker().await?;
    }
    world.settled().await?;
    Ok((world, link))
}

async fn half_open(
    role: Role,
    server: Server,
    ways: &[Way],
    lasting: Duration,
) -> anyhow::Result<Verdict> {
    let (world, link) = first_linked(role, server).await?;
    let verdict = Trial::default()
        .in_world(&world, async |world, _| {
            ways.iter().for_each(|way| link.hold(*way));
            tokio::time::sleep(lasting).await;
            link.heal();
            world.settled().await
        })
        .await?;
    in_time(&verdict)?;
    Ok(verdict)
}

const BOTH: [Way; 2] = [Way::There, Way::Back];

pub async fn ingest_nats(_: Run) -> anyhow::Result<Outcome> {
    held(half_open(Role::Ingest, Server::Nats, &BOTH, PARTED).await?, [])
}

/// What it reads stands still until it reads again: it is back before its partitions would be others'.
pub async fn worker_nats(_: Run) -> anyhow::Result<Outcome> {
    let verdict = half_open(Role::Worker, Server::Nats, &BOTH, NOTICED).await?;
    ensure!(verdict.worst_gap < NOTICED + RECONNECTED, "{verdict}");
    held(verdict, [])
}

/// Its leases are renewed in Postgres, which it still reaches: it has to give them to those that read.
pub async fn worker_nats_long(_: Run) -> anyhow::Result<Outcome> {
    let verdict = half_open(Role::Worker, Server::Nats, &BOTH, PARTED_LONG).await?;
    ensure!(verdict.worst_gap < NOTICED + TAKEN_OVER, "{verdict}");
    held(verdict, [])
}

pub async fn worker_postgres(_: Run) -> anyhow::Result<Outcome> {
    let verdict = half_open(Role::Worker, Server::Postgres, &BOTH, PARTED).await?;
    ensure!(verdict.worst_gap < TAKEN_OVER, "{verdict}");
    held(verdict, [])
}

/// As when another takes its place: what was connected hears nothing ever again, and whoever connects anew is served.
pub async fn postgres_replaced(_: Run) -> anyhow::Result<Outcome> {
    let mut world = World::without_processes(SIZE).await?;
    let link = world.through_link(Role::Worker, Server::Postgres).await?;
    world.start_processes().await?;
    let verdict = Trial::default()
        .in_world(&world, async |world, _| {
            link.forsake();
            tokio::time::sleep(PARTED).await;
            world.settled().await
        })
        .await?;
    in_time(&verdict)?;
    ensure!(verdict.worst_gap < GIVEN_UP + TAKEN_OVER, "{verdict}");
    held(verdict, [])
}

pub async fn one_way(mut run: Run) -> anyhow::Result<Outcome> {
    let way = *run.random.pick(&BOTH);
    let verdict = half_open(Role::Worker, Server::Postgres, &[way], PARTED).await?;
    ensure!(verdict.worst_gap < TAKEN_OVER, "held: {way:?}: {verdict}");
    held(verdict, [format!("held: {way:?}")])
}

/// Again and again the answers of Postgres to a worker are held, and then every connection is reset: whether what was sent is in
/// force is for the worker to find out.
pub async fn answers_lost(_: Run) -> anyhow::Result<Outcome> {
    const TIMES: u32 = 24;
    let (world, link) = first_linked(Role::Worker, Server::Postgres).await?;
    let verdict = Trial { pace: Duration::from_millis(60), ..Trial::default() }
        .in_world(&world, async |world, _| {
            for _ in 0..TIMES {
                link.hold(Way::Back);
                tokio::time::sleep(Duration::from_millis(60)).await;
                link.reset();
                link.heal();
                tokio::time::sleep(Duration::from_millis(240)).await;
            }
            world.settled().await
        })
        .await?;
    in_time(&verdict)?;
    let logs = world.logged("commit has an unknown result").await?;
    let unknown = logs.matches("commit has an unknown result").count();
    held(verdict, [format!("{unknown} commits had an unknown result")])
}

/// A worker loses Postgres while it calls agents: its calls end before others may make them again.
pub async fn cut_off_in_mid_call(_: Run) -> anyhow::Result<Outcome> {
    let (world, link) = first_linked(Role::Worker, Server::Postgres).await?;
    let pace = Duration::from_millis(2_400);
    let trial = Trial { says: "slow:2500", pace, ..Trial::default() };
    let verdict = trial
        .in_world(&world, async |world, _| {
            BOTH.iter().for_each(|way| link.hold(*way));
            tokio::time::sleep(PARTED).await;
            link.heal();
            world.settled().await
        })
        .await?;
    in_time(&verdict)?;
    let overlapped = world.agent.overlapped();
    ensure!(overlapped.is_empty(), "asked again while they were being answered: {overlapped:?}");
    ensure!(verdict.asked_again > 0, "no call was under way: nothing was proved");
    held(verdict, [])
}

/// A worker in a network of its own; its cable is pulled, then only half of it works.
pub async fn cable(_: Run) -> anyhow::Result<Outcome> {
    let namespace = match Namespace::new() {
        Ok(namespace) => namespace,
        Err(why) => return Ok(Outcome::Skipped(format!("{why:#}"))),
    };
    let mut world = World::without_processes(SIZE).await?;
    let here = namespace.here();
    let port = |url: &str| url.rsplit(':').next()?.split('/').next()?.parse::<u16>().ok();
    let slack = Proxy::at(here, port(&world.slack.api()).context("Slack's port")?).await?;
    let agent = Proxy::at(here, port(&world.agent.url()).context("the agent's port")?).await?;
    let _links = (
        world.through_link_at(here, Role::Worker, Server::Nats).await?,
        world.through_link_at(here, Role::Worker, Server::Postgres).await?,
    );
    world.set("TIDEGATE_SLACK_API", &format!("http://{here}:{}/api/", slack.port()));
    world.set("TIDEGATE_AGENT_NETWORKS", "127.0.0.0/8,198.18.0.0/15");
    world.within(Some(&namespace));
    world.start_worker().await?;
    world.within(None);
    world.without_links();
    world.start_processes().await?;
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await?;
    let url = format!("http://{here}:{}/", agent.port());
    sqlx::query("update agents set url = $1").bind(url).execute(&world.pool).await?;
    // A response_url lies on this side only.
    let trial = Trial { users: 0, ..Trial::default() };
    let verdict = trial
        .of_app(&world, &app, async |world, _| {
            namespace.part()?;
            tokio::time::sleep(PARTED).await;
            namespace.heal()?;
            world.settled().await?;
            namespace.part_one_way()?;
            tokio::time::sleep(PARTED).await;
            namespace.heal()?;
            world.settled().await
        })
        .await?;
    held(verdict, [])
}

/// The door does not know Postgres; workers get slow, and with five seconds a query nowhere, until it is over.
pub async fn slow_postgres(_: Run) -> anyhow::Result<Outcome> {
    let mut world = World::without_processes(SIZE).await?;
    world.set("TIDEGATE_LEASE_TTL", "15s");
    let link = world.through_link(Role::Worker, Server::Postgres).await?;
    world.start_processes().await?;
    let trial = Trial { drained_within: Duration::from_secs(90), ..Trial::default() };
    let verdict = trial
        .in_world(&world, async |_, _| {
            for (query, lasting) in [(500, 6), (5_000, 6)] {
                link.delay(Duration::from_millis(query / 2)); // there and back
                tokio::time::sleep(Duration::from_secs(lasting)).await;
            }
            link.heal();
            link.reset(); // what waits in it would take as long again
            tokio::time::sleep(CALM).await;
            Ok(())
        })
        .await?;
    in_time(&verdict)?;
    ensure!(verdict.turned_away == 0, "ingest knows no Postgres, and turned away: {verdict}");
    held(verdict, [])
}

const _: () = assert!(PARTED.as_secs() > 2 * LEASE_TTL.as_secs());
