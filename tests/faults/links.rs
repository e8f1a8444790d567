//! Network links that hang in one or both directions, and a slow Postgres, through a proxy, or with
//! a real network link.

use crate::{
    Run,
    matrix::Outcome,
    runner::{Runner, SIZE, TAKEN_OVER, ensure_in_time, held},
};
use anyhow::{Context, ensure};
use std::time::Duration;
use tests::{
    checker::Verdict,
    fault::CALM,
    netns::Namespace,
    proxy::{Direction, Proxy},
    test_env::{LEASE_TTL, Role, Server, TestEnv, agent_id},
};

/// Duration of a network partition: longer than every ping interval and every lease.
const PARTED: Duration = Duration::from_secs(8);
/// Duration of a network partition that must not delay conversations for so long.
const PARTED_LONG: Duration = Duration::from_secs(25);
/// Time after which a NATS client detects a hanging link: two missed pings, which it sends every
/// two seconds.
const NOTICED: Duration = Duration::from_secs(6);
/// Maximum time of a statement of a worker.
const GIVEN_UP: Duration = Duration::from_secs(7);
/// Time after which a NATS client has reconnected and reads again.
const RECONNECTED: Duration = Duration::from_secs(3);

/// Starts an environment in which the first process of a role reaches a server through a proxy.
async fn start_with_link(role: Role, server: Server) -> anyhow::Result<(TestEnv, Proxy)> {
    let mut env = TestEnv::without_processes(SIZE).await?;
    let link = env.link_through_proxy(role, server).await?;
    match role {
        Role::Ingest => env.start_ingest().await?,
        _ => env.start_worker().await?,
    }
    env.remove_links();
    while env.ingests.len() < SIZE.ingests {
        env.start_ingest().await?;
    }
    while env.workers.len() < SIZE.workers {
        env.start_worker().await?;
    }
    env.wait_until_balanced().await?;
    Ok((env, link))
}

async fn half_open(
    role: Role,
    server: Server,
    ways: &[Direction],
    lasting: Duration,
) -> anyhow::Result<Verdict> {
    let (env, link) = start_with_link(role, server).await?;
    let verdict = Runner::default()
        .run_in(&env, async |env, _| {
            ways.iter().for_each(|way| link.hold(*way));
            tokio::time::sleep(lasting).await;
            link.heal();
            env.wait_until_balanced().await
        })
        .await?;
    ensure_in_time(&verdict)?;
    Ok(verdict)
}

const BOTH: [Direction; 2] = [Direction::FromClient, Direction::ToClient];

pub async fn ingest_nats(_: Run) -> anyhow::Result<Outcome> {
    held(half_open(Role::Ingest, Server::Nats, &BOTH, PARTED).await?, [])
}

/// The partitions of the worker stall until it reads again, before other workers may claim them.
pub async fn worker_nats(_: Run) -> anyhow::Result<Outcome> {
    let verdict = half_open(Role::Worker, Server::Nats, &BOTH, NOTICED).await?;
    ensure!(verdict.worst_gap < NOTICED + RECONNECTED, "{verdict}");
    held(verdict, [])
}

/// The worker still reaches Postgres and could renew its leases, so it has to release them.
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

/// Existing connections with Postgres hang and new ones work, as when another server takes over the
/// address.
pub async fn postgres_replaced(_: Run) -> anyhow::Result<Outcome> {
    let mut env = TestEnv::without_processes(SIZE).await?;
    let link = env.link_through_proxy(Role::Worker, Server::Postgres).await?;
    env.start_processes().await?;
    let verdict = Runner::default()
        .run_in(&env, async |env, _| {
            link.abandon();
            tokio::time::sleep(PARTED).await;
            env.wait_until_balanced().await
        })
        .await?;
    ensure_in_time(&verdict)?;
    ensure!(verdict.worst_gap < GIVEN_UP + TAKEN_OVER, "{verdict}");
    held(verdict, [])
}

pub async fn one_way(mut run: Run) -> anyhow::Result<Outcome> {
    let way = *run.random.pick(&BOTH);
    let verdict = half_open(Role::Worker, Server::Postgres, &[way], PARTED).await?;
    ensure!(verdict.worst_gap < TAKEN_OVER, "held {way:?}: {verdict}");
    held(verdict, [format!("held {way:?}")])
}

/// The responses of Postgres to a worker are held and the connections reset, repeatedly. The worker
/// has to find out which commits succeeded.
pub async fn answers_lost(_: Run) -> anyhow::Result<Outcome> {
    const TIMES: u32 = 24;
    let (env, link) = start_with_link(Role::Worker, Server::Postgres).await?;
    let verdict = Runner { pace: Duration::from_millis(60), ..Runner::default() }
        .run_in(&env, async |env, _| {
            for _ in 0..TIMES {
                link.hold(Direction::ToClient);
                tokio::time::sleep(Duration::from_millis(60)).await;
                link.reset();
                link.heal();
                tokio::time::sleep(Duration::from_millis(240)).await;
            }
            env.wait_until_balanced().await
        })
        .await?;
    ensure_in_time(&verdict)?;
    let logs = env.wait_for_log("commit has an unknown result").await?;
    let unknown = logs.matches("commit has an unknown result").count();
    held(verdict, [format!("{unknown} commits had an unknown result")])
}

/// A worker loses Postgres while it calls agents. Its calls end before other workers may repeat
/// them.
pub async fn cut_off_in_mid_call(_: Run) -> anyhow::Result<Outcome> {
    let (env, link) = start_with_link(Role::Worker, Server::Postgres).await?;
    let pace = Duration::from_millis(2_400);
    let runner = Runner { text_prefix: "slow:2500", pace, ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |env, _| {
            BOTH.iter().for_each(|way| link.hold(*way));
            tokio::time::sleep(PARTED).await;
            link.heal();
            env.wait_until_balanced().await
        })
        .await?;
    ensure_in_time(&verdict)?;
    let overlapped = env.agent.overlapping_ids();
    ensure!(overlapped.is_empty(), "the agent was called again before its answer: {overlapped:?}");
    ensure!(verdict.repeated_calls > 0, "no call was running: the test proves nothing");
    held(verdict, [])
}

/// A worker in a network namespace: its link is disconnected, then works in one direction only.
pub async fn cable(_: Run) -> anyhow::Result<Outcome> {
    let namespace = match Namespace::new() {
        Ok(namespace) => namespace,
        Err(why) => return Ok(Outcome::Skipped(format!("{why:#}"))),
    };
    let mut env = TestEnv::without_processes(SIZE).await?;
    let here = namespace.here();
    let port = |url: &str| url.rsplit(':').next()?.split('/').next()?.parse::<u16>().ok();
    let slack =
        Proxy::at(here, port(&env.slack.api()).context("the URL of Slack has no port")?).await?;
    let agent =
        Proxy::at(here, port(&env.agent.url()).context("the URL of the agent has no port")?)
            .await?;
    let _links = (
        env.link_through_proxy_at(here, Role::Worker, Server::Nats).await?,
        env.link_through_proxy_at(here, Role::Worker, Server::Postgres).await?,
    );
    env.set("TIDEGATE_SLACK_API_URL", &format!("http://{here}:{}/api/", slack.port()));
    env.set("TIDEGATE_AGENT_ALLOWED_NETWORKS", "127.0.0.0/8,198.18.0.0/15");
    env.enter_namespace(Some(&namespace));
    env.start_worker().await?;
    env.enter_namespace(None);
    env.remove_links();
    env.start_processes().await?;
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await?;
    let url = format!("http://{here}:{}/", agent.port());
    sqlx::query("update agents set url = $1").bind(url).execute(&env.pool).await?;
    // No commands, because `response_url`s are not reachable from the namespace.
    let runner = Runner { users: 0, ..Runner::default() };
    let verdict = runner
        .run_with_app(&env, &app, async |env, _| {
            namespace.disconnect()?;
            tokio::time::sleep(PARTED).await;
            namespace.heal()?;
            env.wait_until_balanced().await?;
            namespace.disconnect_outbound()?;
            tokio::time::sleep(PARTED).await;
            namespace.heal()?;
            env.wait_until_balanced().await
        })
        .await?;
    held(verdict, [])
}

/// Ingest is not affected. Workers slow down, and stop at five seconds per query, until the fault
/// ends.
pub async fn slow_postgres(_: Run) -> anyhow::Result<Outcome> {
    let mut env = TestEnv::without_processes(SIZE).await?;
    env.set("TIDEGATE_LEASE_TTL", "15s");
    let link = env.link_through_proxy(Role::Worker, Server::Postgres).await?;
    env.start_processes().await?;
    let runner = Runner { drained_within: Duration::from_secs(90), ..Runner::default() };
    let verdict = runner
        .run_in(&env, async |_, _| {
            for (query, lasting) in [(500, 6), (5_000, 6)] {
                link.delay(Duration::from_millis(query / 2)); // in each direction
                tokio::time::sleep(Duration::from_secs(lasting)).await;
            }
            link.heal();
            link.reset(); // held bytes would arrive late
            tokio::time::sleep(CALM).await;
            Ok(())
        })
        .await?;
    ensure_in_time(&verdict)?;
    ensure!(
        verdict.rejected == 0,
        "ingest does not use Postgres, but rejected requests: {verdict}"
    );
    held(verdict, [])
}

const _: () = assert!(PARTED.as_secs() > 2 * LEASE_TTL.as_secs());
