//! (e): the worker's own commit statement in a loop, and nothing else, in a database of its own on the same Postgres.

use crate::client::number;
use anyhow::ensure;
use shared::{
    codec::envelope::DedupeKey,
    config,
    partition::{Conversation, Lane},
    secrets::KeyRing,
    store::{Committed, Effects, OneOfMany, Owner, Position, Rings, Store},
    types::ConnectionId,
};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tests::postgres::Postgres;
use tokio::task::JoinSet;

/// Sessions, as many as a worker has.
const SESSIONS: u32 = 16;
/// As the worker groups.
const GROUP: usize = 128;
const GROUPS_AT_ONCE: usize = 2;

/// A worker that only commits.
#[derive(Clone)]
pub struct Commits {
    store: Store,
    owners: Arc<Vec<Owner>>,
    connection: ConnectionId,
}

impl Commits {
    /// Makes the database and owns all of its partitions.
    pub async fn start(postgres: &Postgres) -> anyhow::Result<Self> {
        let url = postgres.create_database("ceiling").await?;
        let settings = config::Postgres { url, connections: SESSIONS };
        Store::migrate(&settings).await?;
        let ring = || -> anyhow::Result<KeyRing> { Ok(KeyRing::generate("k1")?.parse()?) };
        let store = Store::new(&settings, Rings { signing: ring()?, tokens: ring()? })?;
        let leased = store.claim_partitions("ceiling", 64, Duration::from_secs(7200)).await?;
        let owners = leased
            .iter()
            .map(|l| Owner::live("ceiling", l.partition, l.epoch, l.generation))
            .collect();
        Ok(Self { store, owners: Arc::new(owners), connection: ConnectionId::random()? })
    }

    /// A webhook that nothing follows from, and its owner.
    fn position(&self, number: u64) -> (&Owner, Position) {
        let text = number.to_string();
        let at = Position {
            sequence: number,
            lane: Lane::of(self.connection, Conversation::Thread("C1", &text)),
            connection: self.connection,
            dedupe: DedupeKey::event(self.connection, &text),
            traceparent: None,
        };
        (&self.owners[number as usize % self.owners.len()], at)
    }

    /// One by one, on all sessions at once. A second.
    pub async fn singly(&self, lasting: Duration) -> anyhow::Result<f64> {
        self.drive(SESSIONS as usize, 1, lasting).await
    }

    /// In groups, as the worker makes them when there is much to do. A second.
    pub async fn together(&self, lasting: Duration) -> anyhow::Result<f64> {
        self.drive(GROUPS_AT_ONCE, GROUP, lasting).await
    }

    async fn drive(&self, at_once: usize, group: usize, lasting: Duration) -> anyhow::Result<f64> {
        let (began, until) = (Instant::now(), Instant::now() + lasting);
        let mut tasks = JoinSet::new();
        for _ in 0..at_once {
            let commits = self.clone();
            tasks.spawn(async move {
                let mut done = 0;
                while Instant::now() < until {
                    commits.commit(group).await?;
                    done += group;
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

    /// Commits one, by the same statement as a group: what a worker does with a webhook that comes alone.
    pub async fn commit_one(&self, number: u64) -> anyhow::Result<()> {
        let effects = Effects { outcome: "ignored", ..Effects::default() };
        let (owner, at) = self.position(number);
        let committed =
            self.store.commit_together(&[OneOfMany { owner, at: &at, effects: &effects }]).await?;
        ensure!(
            matches!(committed[..], [Committed::Applied { .. }]),
            "it did nothing: {committed:?}"
        );
        Ok(())
    }

    /// Commits so many at once; one alone as the worker does when it decides something.
    async fn commit(&self, group: usize) -> anyhow::Result<()> {
        let effects = Effects { outcome: "ignored", ..Effects::default() };
        let places: Vec<_> = (0..group).map(|_| self.position(number())).collect();
        let committed = match &places[..] {
            [(owner, at)] => vec![self.store.commit(owner, at, &effects).await?],
            _ => {
                let one = |(owner, at)| OneOfMany { owner, at, effects: &effects };
                let many: Vec<_> = places.iter().map(|(owner, at)| one((*owner, at))).collect();
                self.store.commit_together(&many).await?
            }
        };
        let applied = |committed: &Committed| matches!(committed, Committed::Applied { .. });
        ensure!(committed.iter().all(applied), "a ceiling's commit did nothing: {committed:?}");
        Ok(())
    }
}
