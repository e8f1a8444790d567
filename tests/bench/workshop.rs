//! A Tidegate whose stream is filled by hand, so that what is measured is the way out alone.
//!
//! In: webhooks, as ingest would store them. Out: how fast they were handled, by the times that Postgres wrote beside each.

use crate::{client::number, commits::Commits, tenants::Tenants};
use anyhow::{Context, ensure};
use async_nats::jetstream;
use futures_util::{StreamExt, TryStreamExt, stream};
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
/// Publishes in flight.
const AT_ONCE: usize = 256;
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

/// When webhooks were committed, by Postgres's clock, sorted.
pub struct Times(Vec<f64>);

impl Times {
    /// A second, without the very beginning and the very end, where not all of it is at work.
    pub fn rate(&self) -> f64 {
        let (from, to) = (self.0.len() / 20, self.0.len() * 19 / 20);
        (to - from) as f64 / (self.0[to] - self.0[from]).max(1e-6)
    }

    /// A second, for each tenth.
    pub fn tenths(&self) -> Vec<f64> {
        let at = |tenth: usize| (self.0.len() - 1) * tenth / 10;
        let rate = |n| (at(n + 1) - at(n)) as f64 / (self.0[at(n + 1)] - self.0[at(n)]).max(1e-6);
        (0..10).map(rate).collect()
    }
}

impl Workshop {
    /// Servers and connections; no ingest, no worker.
    pub async fn start() -> anyhow::Result<Self> {
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
        Ok(Self { world, commits, apps, tenants: Arc::new(tenants), js })
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
        let published = self.publish_beside(envelopes).await;
        self.world.workers.iter().for_each(|worker| worker.process.thaw());
        published
    }

    async fn publish_beside(
        &self,
        envelopes: impl Iterator<Item = Envelope>,
    ) -> anyhow::Result<u64> {
        let js = &self.js;
        let published = stream::iter(envelopes)
            .map(async |envelope: Envelope| -> anyhow::Result<u64> {
                let (subject, headers) = (envelope.subject(), envelope.headers());
                Ok(js.publish_with_headers(subject, headers, envelope.body).await?.await?.sequence)
            })
            .buffer_unordered(AT_ONCE)
            .try_fold(0, async |last, sequence| Ok(last.max(sequence)));
        published.await.context("publishing")
    }

    /// The sequence that the stream is at.
    pub async fn last_sequence(&self) -> anyhow::Result<u64> {
        let stream = self.js.get_stream(STREAM).await?;
        Ok(stream.cached_info().state.last_sequence)
    }

    /// Waits until all up to `last` is done, and gives when each after `first` was.
    pub async fn drained(&self, first: u64, last: u64) -> anyhow::Result<Times> {
        let (count, began) = (last - first, Instant::now());
        loop {
            let asked = Instant::now();
            let done: i64 = sqlx::query_scalar(
                "select count(*) from seen where outcome <> 'trigger' and sequence > $1 and sequence <= $2",
            )
            .bind(first as i64)
            .bind(last as i64)
            .fetch_one(&self.world.pool)
            .await?;
            if done as u64 >= count {
                break;
            }
            ensure!(began.elapsed() < DRAINED_WITHIN, "{done} of {count} done: {}", self.tail());
            // Counting is work for Postgres, too: a twentieth of its time at most.
            tokio::time::sleep((asked.elapsed() * 20).max(Duration::from_millis(50))).await;
        }
        let times: Vec<f64> = sqlx::query_scalar(
            "select extract(epoch from at)::float8 from seen
              where outcome <> 'trigger' and sequence > $1 and sequence <= $2 order by at",
        )
        .bind(first as i64)
        .bind(last as i64)
        .fetch_all(&self.world.pool)
        .await?;
        ensure!(times.len() as u64 == count, "{} of {count} are done", times.len());
        Ok(Times(times))
    }

    /// Waits until all is said that was decided, so that the next slice does not pay for this one's.
    pub async fn said(&self) -> anyhow::Result<()> {
        let nothing_left = async || {
            let open: i64 = sqlx::query_scalar(
                "select count(*) from outbox where state in ('pending', 'sending')",
            )
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
