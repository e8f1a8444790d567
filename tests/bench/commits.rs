//! Baseline (e): intake's commit statement in a loop, in a separate database on the same Postgres.

use crate::tenants::Tenants;
use anyhow::ensure;
use shared::{
    runtime::config,
    secrets::KeyRing,
    store::{
        BatchCommit, CommitOutcome, DecidedWebhook, Decision, FencingToken, IgnoreReason, KeyRings,
        LastMessage, Store, WebhookIds,
    },
    stream::Envelope,
};
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tests::postgres::Postgres;
use tokio::{sync::Mutex, task::JoinSet};

/// Number of sessions with Postgres, as in a worker.
const SESSIONS: u32 = 16;
/// Batch size of intake under load.
const BATCH: usize = 256;
const BATCHES_AT_ONCE: usize = 2;

/// A worker that only commits.
#[derive(Clone)]
pub struct Commits {
    store: Store,
    /// Fencing token and cursor of each partition.
    partitions: Arc<Vec<(FencingToken, Mutex<u64>)>>,
    envelope: Envelope,
}

impl Commits {
    /// Creates the database and claims all partitions.
    pub async fn start(postgres: &Postgres) -> anyhow::Result<Self> {
        let url = postgres.create_database("baseline").await?;
        let settings = config::PostgresConfig { url, ca_file: None, max_connections: SESSIONS };
        Store::migrate(&settings).await?;
        let ring = || -> anyhow::Result<KeyRing> { Ok(KeyRing::generate("k1")?.parse()?) };
        let store = Store::new(
            &settings,
            KeyRings { signing: ring()?, tokens: ring()? },
            shared::store::PlanMode::Once,
        )?;
        let claimed =
            store.claim_partitions("baseline", 64, &[], Duration::from_secs(7200)).await?;
        let partitions =
            claimed.iter().map(|lease| (lease.token, Mutex::new(lease.state.cursor))).collect();
        let envelope = Tenants::random(1)?.envelope(0, 0);
        Ok(Self { store, partitions: Arc::new(partitions), envelope })
    }

    /// Returns the rate per second of commits of one webhook each, on all sessions.
    pub async fn singly(&self, lasting: Duration) -> anyhow::Result<f64> {
        self.drive(SESSIONS as usize, 1, lasting).await
    }

    /// Returns the webhooks per second that are committed in batches, as by intake under load.
    pub async fn together(&self, lasting: Duration) -> anyhow::Result<f64> {
        self.drive(BATCHES_AT_ONCE, BATCH, lasting).await
    }

    async fn drive(&self, at_once: usize, batch: usize, lasting: Duration) -> anyhow::Result<f64> {
        let (began, until) = (Instant::now(), Instant::now() + lasting);
        let mut tasks = JoinSet::new();
        for task in 0..at_once {
            let commits = self.clone();
            tasks.spawn(async move {
                let (mut done, mut partition) = (0, task);
                while Instant::now() < until {
                    commits.commit(partition, batch).await?;
                    done += batch;
                    partition += at_once; // tasks use different partitions
                }
                anyhow::Ok(done)
            });
        }
        let mut done = 0;
        while let Some(ended) = tasks.join_next().await {
            done += ended??;
        }
        Ok(done as f64 / began.elapsed().as_secs_f64())
    }

    /// Commits a batch of one webhook.
    pub async fn commit_one(&self, number: u64) -> anyhow::Result<()> {
        self.commit(number as usize, 1).await
    }

    /// Commits a batch of webhooks without effects.
    async fn commit(&self, partition: usize, batch: usize) -> anyhow::Result<()> {
        let (token, cursor) = &self.partitions[partition % self.partitions.len()];
        let mut cursor = cursor.lock().await;
        let stored_at = SystemTime::now().into();
        let webhook = |sequence| {
            let (envelope, ids) = (self.envelope.clone(), WebhookIds::default());
            let decision = Decision::Ignore { reason: IgnoreReason::NotAMessage, addressed: false };
            (0, DecidedWebhook { sequence, stored_at, envelope, ids, decision })
        };
        let to = *cursor + batch as u64;
        let webhooks: Vec<_> = (*cursor + 1..=to).map(webhook).collect();
        let last = LastMessage { sequence: to, key: to.to_string(), stored_at };
        let commit = BatchCommit { token: *token, from: *cursor, last, webhooks: &webhooks };
        let outcome = self.store.commit_batch(&commit).await?;
        ensure!(outcome == CommitOutcome::Committed, "the commit of the baseline had no effect");
        *cursor = to;
        Ok(())
    }
}
