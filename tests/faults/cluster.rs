//! A cluster of three nats-servers with every webhook on each: costs of a lost leader, without loss
//! of accepted webhooks.

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
/// An election takes 4 to 9 s, and this machine is slow.
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
        "{} of {} tries turned away, slowest answer {:.1} s",
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

/// As in an upgrade: one after the other, each healthy before the next.
pub async fn lame_ducks(_: Run) -> anyhow::Result<Outcome> {
    let env = TestEnv::on_cluster(SIZE, SERVERS).await?;
    let verdict = runner()
        .run_in(&env, async |env, _| {
            for nats in servers(env) {
                nats.lame_duck();
                let gone = nats.process().wait(Duration::from_secs(90)).await;
                gone.context("a lame duck ends")?;
                nats.restart().await?;
                nats.wait_until_healthy().await?;
                tokio::time::sleep(CALM).await;
            }
            Ok(())
        })
        .await?;
    judge(verdict)
}

/// The server keeps its connections without answers.
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
