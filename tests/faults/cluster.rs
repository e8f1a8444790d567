//! Faults of a cluster of three nats-servers, each with every webhook: accepted webhooks are not
//! lost, and stalls are bounded.

use crate::{
    Run,
    matrix::Outcome,
    runner::{Runner, SIZE, ensure_in_time, held},
};
use anyhow::{Context, ensure};
use shared::stream::STREAM;
use std::time::Duration;
use tests::{
    checker::Verdict, eventually::try_eventually, fault::CALM, nats::Nats, test_env::TestEnv,
};

const SERVERS: usize = 3;
/// Maximum stall. An election takes 4 to 9 s, longer on a busy machine.
const GAP_MAX: Duration = Duration::from_secs(20);
const ELECTED_WITHIN: Duration = Duration::from_secs(30);

fn runner() -> Runner {
    Runner { users: 6, drained_within: Duration::from_secs(120), ..Runner::default() }
}

/// Returns the server that leads the stream.
async fn leader(env: &TestEnv) -> anyhow::Result<&Nats> {
    let named = async || {
        let js = async_nats::jetstream::new(env.client().clone());
        let info = js.get_stream(STREAM).await.ok()?.cached_info().cluster.clone()?;
        let name = info.leader?;
        servers(env).find(|nats| nats.server_name() == name)
    };
    try_eventually("the stream has a leader", ELECTED_WITHIN, named).await
}

fn servers(env: &TestEnv) -> impl Iterator<Item = &Nats> {
    std::iter::once(&env.nats).chain(&env.replicas)
}

fn judge(verdict: Verdict) -> anyhow::Result<Outcome> {
    ensure_in_time(&verdict)?;
    ensure!(verdict.worst_gap < GAP_MAX, "{verdict}");
    let notes = [format!(
        "{} of {} requests rejected, slowest answer {:.1} s",
        verdict.rejected,
        verdict.attempts,
        verdict.slowest.as_secs_f64()
    )];
    held(verdict, notes)
}

pub async fn leader_killed(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::on_cluster(SIZE, SERVERS).await?;
    let verdict = runner()
        .run_in(&env, async |env, _| {
            let leader = leader(env).await?;
            leader.kill();
            tokio::time::sleep(Duration::from_secs(10)).await;
            leader.restart().await?;
            leader.wait_until_healthy().await
        })
        .await?;
    judge(verdict)
}

/// Restarts the servers one by one, as an upgrade does. Each is healthy before the next one stops.
pub async fn lame_ducks(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::on_cluster(SIZE, SERVERS).await?;
    let verdict = runner()
        .run_in(&env, async |env, _| {
            for nats in servers(env) {
                nats.lame_duck();
                let ended = nats.process().wait(Duration::from_secs(90)).await;
                ended.context("a server in lame duck mode did not end")?;
                nats.restart().await?;
                nats.wait_until_healthy().await?;
                tokio::time::sleep(CALM).await;
            }
            Ok(())
        })
        .await?;
    judge(verdict)
}

/// The leader is frozen: its connections stay open without answers.
pub async fn one_frozen(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::on_cluster(SIZE, SERVERS).await?;
    let verdict = runner()
        .run_in(&env, async |env, _| {
            let leader = leader(env).await?;
            leader.freeze();
            tokio::time::sleep(Duration::from_secs(12)).await;
            leader.thaw();
            leader.wait_until_healthy().await
        })
        .await?;
    judge(verdict)
}
