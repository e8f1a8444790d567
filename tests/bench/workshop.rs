//! A Tidegate whose stream is filled by hand, so that what is measured is the way out alone.
//!
//! In: webhooks, as ingest would store them. Out: how fast they were handled, by the counts that Postgres has of them.

use crate::{client::number, commits::Commits, tenants::Tenants};
use anyhow::ensure;
use async_nats::jetstream;
use shared::{
    codec::envelope::Envelope,
    config,
    stream::{STREAM, Sizing},
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tests::{
    provision::agent_id,
    until::try_until,
    world::{App, Size, World},
};

/// Connections that webhooks come for: more than the slots that one of them may have.
const APPS: usize = 64;
/// Longest that a backlog may take.
const DRAINED_WITHIN: Duration = Duration::from_secs(900);

/// A world, what it is compared with, and those that send.
pub struct Workshop {
    /// The world.
    pub world: World,
    /// (e)
    pub commits: Commits,
    /// Its connections; each has the sample agent.
    pub apps: Vec<App>,
    /// The same as senders.
    pub tenants: Arc<Tenants>,
    /// JetStream.
    pub js: jetstream::Context,
}

/// How many webhooks were handled at which second, looked at again and again.
pub struct Progress(Vec<(f64, f64)>);

impl Progress {
    /// A second, without the very beginning and the very end, where not all of it is at work.
    pub fn rate(&self) -> f64 {
        self.between(0.05, 0.95)
    }

    /// A second, for each tenth.
    pub fn tenths(&self) -> Vec<f64> {
        (0..10).map(|n| self.between(f64::from(n) / 10.0, f64::from(n + 1) / 10.0)).collect()
    }

    fn between(&self, from: f64, to: f64) -> f64 {
        let all = self.0.last().map_or(0.0, |last| last.1);
        (to - from) * all / (self.second_of(to * all) - self.second_of(from * all)).max(1e-6)
    }

    /// When so many were handled, between two looks by a straight line.
    fn second_of(&self, done: f64) -> f64 {
        let reached = self.0.windows(2).find(|looks| looks[1].1 >= done);
        reached.map_or(0.0, |looks| {
            let ((t0, d0), (t1, d1)) = (looks[0], looks[1]);
            if d1 > d0 { t0 + (t1 - t0) * ((done - d0) / (d1 - d0)).max(0.0) } else { t1 }
        })
    }
}

impl Workshop {
    /// Servers and connections; no ingest, no worker.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(|tenants| tenants).await
    }

    /// The same, with senders who send something else.
    pub async fn start_with(send: impl FnOnce(Tenants) -> Tenants) -> anyhow::Result<Self> {
        let size = Size { ingests: 0, workers: 0, own_postgres: true };
        let mut world = World::synced_seldom(size).await?;
        world.set("TIDEGATE_LOG", "info");
        let js = config::jetstream(world.client().clone());
        let commits = Commits::start(&world.postgres).await?;
        let mut apps = Vec::new();
        for _ in 0..APPS {
            apps.push(world.prepare_as(|new| new.agent = Some(agent_id())).await?);
        }
        let tenants = Tenants::of(apps.iter().map(|app| (app.connection, app.secret.clone())));
        Ok(Self { world, commits, apps, tenants: Arc::new(send(tenants)), js })
    }

    /// Makes room in the stream for so many bytes.
    pub async fn room(&self, bytes: i64) -> anyhow::Result<()> {
        let sizing = Sizing { replicas: Some(1), max_bytes: Some(bytes) };
        Ok(shared::stream::ensure(&self.js, sizing).await?)
    }

    /// So many workers in all, each with its share of the partitions.
    pub async fn workers(&mut self, count: usize) -> anyhow::Result<()> {
        while self.world.workers.iter().filter(|w| w.process.is_running()).count() < count {
            self.world.start_worker().await?;
        }
        self.world.settled().await
    }

    /// Publishes events that no agent is asked about; gives the sequence of the last.
    pub async fn publish_events(&self, count: u64, bytes: usize) -> anyhow::Result<u64> {
        self.publish((0..count).map(|_| self.tenants.envelope(number(), bytes))).await
    }

    /// Publishes these while the workers are frozen, so that what is measured is not how fast the stream is filled; gives
    /// the sequence of the last.
    pub async fn publish(&self, envelopes: impl Iterator<Item = Envelope>) -> anyhow::Result<u64> {
        self.world.workers.iter().for_each(|worker| worker.process.freeze());
        let published = self.world.publish(envelopes).await;
        self.world.workers.iter().for_each(|worker| worker.process.thaw());
        published
    }

    /// The sequence that the stream is at.
    pub async fn last_sequence(&self) -> anyhow::Result<u64> {
        let stream = self.js.get_stream(STREAM).await?;
        Ok(stream.cached_info().state.last_sequence)
    }

    /// Waits until all after `first` and up to `last` is handled, all before being so, and gives how that went.
    pub async fn drained(&self, first: u64, last: u64) -> anyhow::Result<Progress> {
        let (count, began) = (last - first, Instant::now());
        let mut looks = vec![(0.0, 0.0)];
        loop {
            let asked = Instant::now();
            let done = self.world.finished().await?.saturating_sub(first);
            looks.push((began.elapsed().as_secs_f64(), done as f64));
            if done >= count {
                return Ok(Progress(looks));
            }
            ensure!(began.elapsed() < DRAINED_WITHIN, "{done} of {count} done: {}", self.tail());
            // Counting is work for Postgres, too: a twentieth of its time at most.
            tokio::time::sleep((asked.elapsed() * 20).max(Duration::from_millis(20))).await;
        }
    }

    /// Waits until all up to `last` is committed by intake.
    pub async fn committed(&self, last: u64) -> anyhow::Result<()> {
        let committed = "select sum(messages)::bigint from partition_cursors";
        let all = async || {
            let done: i64 = sqlx::query_scalar(committed).fetch_one(&self.world.pool).await.ok()?;
            (done as u64 >= last).then_some(())
        };
        try_until("all is committed", DRAINED_WITHIN, all).await
    }

    /// Agents are asked nothing: what is theirs stays in `deliveries`, where each row says when it was committed.
    pub async fn pause_agents(&self) -> anyhow::Result<()> {
        sqlx::query("update agents set paused_at = now()").execute(&self.world.pool).await?;
        Ok(())
    }

    /// Waits until all is said that was decided, so that the next slice does not pay for this one's.
    pub async fn said(&self) -> anyhow::Result<()> {
        let nothing_left = async || {
            let open: i64 = sqlx::query_scalar("select count(*) from outbox")
                .fetch_one(&self.world.pool)
                .await
                .ok()?;
            (open == 0).then_some(())
        };
        try_until("all is said", DRAINED_WITHIN, nothing_left).await
    }

    /// The last that its processes said.
    fn tail(&self) -> String {
        let logs = self.world.logs();
        let lines: Vec<&str> = logs.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}
