//! A test environment whose stream is filled directly, so that only workers are measured.
//!
//! Progress is read from Postgres.

use crate::{client::number, commits::Commits, tenants::Tenants};
use anyhow::ensure;
use async_nats::jetstream;
use shared::{
    runtime::config,
    stream::{Envelope, STREAM, StreamSize},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tests::{
    eventually::try_eventually,
    provision::agent_id,
    test_env::{App, Size, TestEnv},
};

/// Number of connections, so that the slots of one connection are not a limit.
const APPS: usize = 64;
/// Maximum time to process a backlog.
const DRAINED_WITHIN: Duration = Duration::from_secs(900);

/// A test environment, the commit baseline, and the tenants.
pub struct WorkerFixture {
    /// Test environment.
    pub env: TestEnv,
    /// Baseline (e).
    pub commits: Commits,
    /// Connections with the sample agent.
    pub apps: Vec<App>,
    /// The connections as senders of webhooks.
    pub tenants: Arc<Tenants>,
    /// JetStream.
    pub js: jetstream::Context,
}

/// Seconds since the start and numbers of processed webhooks.
pub struct Progress(Vec<(f64, f64)>);

impl Progress {
    /// Returns the rate per second without the first and last 5 %, in which not all workers are
    /// busy.
    pub fn rate(&self) -> f64 {
        self.between(0.05, 0.95)
    }

    /// Returns the rate per second of each tenth.
    pub fn tenths(&self) -> Vec<f64> {
        (0..10).map(|n| self.between(f64::from(n) / 10.0, f64::from(n + 1) / 10.0)).collect()
    }

    fn between(&self, from: f64, to: f64) -> f64 {
        let all = self.0.last().map_or(0.0, |last| last.1);
        (to - from) * all / (self.second_of(to * all) - self.second_of(from * all)).max(1e-6)
    }

    /// Returns the interpolated time at which a number of webhooks was processed.
    fn second_of(&self, done: f64) -> f64 {
        let reached = self.0.windows(2).find(|samples| samples[1].1 >= done);
        reached.map_or(0.0, |samples| {
            let ((t0, d0), (t1, d1)) = (samples[0], samples[1]);
            if d1 > d0 { t0 + (t1 - t0) * ((done - d0) / (d1 - d0)).max(0.0) } else { t1 }
        })
    }
}

impl WorkerFixture {
    /// Starts servers and connections, without ingest and workers.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(|tenants| tenants).await
    }

    /// Starts servers and connections, with changed senders.
    pub async fn start_with(send: impl FnOnce(Tenants) -> Tenants) -> anyhow::Result<Self> {
        let size = Size { ingests: 0, workers: 0, own_postgres: true };
        let mut env = TestEnv::with_rare_sync(size).await?;
        env.set("TIDEGATE_LOG_FILTER", "info");
        let js = config::jetstream(env.client().clone());
        let commits = Commits::start(&env.postgres).await?;
        let mut apps = Vec::new();
        for _ in 0..APPS {
            apps.push(env.prepare_as(|new| new.agent = Some(agent_id())).await?);
        }
        let tenants = Tenants::of(&apps);
        Ok(Self { env, commits, apps, tenants: Arc::new(send(tenants)), js })
    }

    /// Raises the size limit of the stream by a number of bytes.
    pub async fn room(&self, bytes: i64) -> anyhow::Result<()> {
        let sizing = StreamSize { replicas: Some(1), max_bytes: Some(bytes) };
        Ok(shared::stream::provision(&self.js, sizing).await?)
    }

    /// Starts workers until `count` run, and waits until the partitions are balanced.
    pub async fn workers(&mut self, count: usize) -> anyhow::Result<()> {
        while self.env.workers.iter().filter(|w| w.process.is_running()).count() < count {
            self.env.start_worker().await?;
        }
        self.env.wait_until_balanced().await
    }

    /// Publishes events that call no agent. Returns the sequence of the last.
    pub async fn publish_events(&self, count: u64, bytes: usize) -> anyhow::Result<u64> {
        self.publish((0..count).map(|_| self.tenants.envelope(number(), bytes))).await
    }

    /// Publishes webhooks while workers are frozen, so that filling the stream is not measured.
    /// Returns the sequence of the last.
    pub async fn publish(&self, envelopes: impl Iterator<Item = Envelope>) -> anyhow::Result<u64> {
        self.env.workers.iter().for_each(|worker| worker.process.freeze());
        let published = self.env.publish(envelopes).await;
        self.env.workers.iter().for_each(|worker| worker.process.thaw());
        published
    }

    /// Returns the last sequence of the stream.
    pub async fn last_sequence(&self) -> anyhow::Result<u64> {
        let stream = self.js.get_stream(STREAM).await?;
        Ok(stream.cached_info().state.last_sequence)
    }

    /// Waits until all webhooks after `first` and up to `last` are processed. Earlier ones must be
    /// processed already. Returns the progress.
    pub async fn wait_until_processed(&self, first: u64, last: u64) -> anyhow::Result<Progress> {
        let (count, began) = (last - first, Instant::now());
        let mut samples = vec![(0.0, 0.0)];
        loop {
            let started = Instant::now();
            let done = self.env.finished().await?.saturating_sub(first);
            samples.push((began.elapsed().as_secs_f64(), done as f64));
            if done >= count {
                return Ok(Progress(samples));
            }
            ensure!(
                began.elapsed() < DRAINED_WITHIN,
                "only {done} of {count} webhooks were processed: {}",
                self.tail()
            );
            // Counting uses time of Postgres, here at most a twentieth.
            tokio::time::sleep((started.elapsed() * 20).max(Duration::from_millis(20))).await;
        }
    }

    /// Waits until intake has committed up to `last`.
    pub async fn wait_until_committed(&self, last: u64) -> anyhow::Result<()> {
        let committed = "select sum(messages)::bigint from partition_cursors";
        let all = async || {
            let done: i64 = sqlx::query_scalar(committed).fetch_one(&self.env.pool).await.ok()?;
            (done as u64 >= last).then_some(())
        };
        try_eventually("all webhooks are committed", DRAINED_WITHIN, all).await
    }

    /// Pauses all agents, so that deliveries stay in `deliveries`, where each row has the time of
    /// its transaction.
    pub async fn pause_agents(&self) -> anyhow::Result<()> {
        sqlx::query("update agents set paused_at = now()").execute(&self.env.pool).await?;
        Ok(())
    }

    /// Waits until the outbox is empty, so that this slice does not affect the next one.
    pub async fn wait_until_sent(&self) -> anyhow::Result<()> {
        let is_empty = async || {
            let open: i64 = sqlx::query_scalar("select count(*) from outbox")
                .fetch_one(&self.env.pool)
                .await
                .ok()?;
            (open == 0).then_some(())
        };
        try_eventually("the outbox is empty", DRAINED_WITHIN, is_empty).await
    }

    /// Returns the last log lines of the processes.
    fn tail(&self) -> String {
        let logs = self.env.logs();
        let lines: Vec<&str> = logs.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}
