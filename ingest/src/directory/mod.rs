//! Which connection a webhook is for, from memory.
//!
//! In: the bucket `connections`, followed from its beginning. Out: a connection by id, or by the keys of the
//! shared route. Complete before the first webhook is taken. What is not in memory is read from the bucket
//! before it is said not to exist: it may have been made a moment ago. That costs a read, so those reads
//! are bounded in number, and an answer of "no" is remembered for up to 2 s; made-up ids cost nothing much.
//! While memory may not be believed (see `follower`) everything is read. Postgres is not asked, and not needed.

mod lookup_limiter;
mod follower;
mod cache;

pub use cache::Connection;

use crate::webhook::classify::Routing;
use async_nats::{
    Client,
    connection::State,
    jetstream::{self, kv},
};
use cache::Memory;
use futures_util::future::BoxFuture;
use lookup_limiter::{Bounds, MayRead};
use prometheus_client::metrics::counter::Counter;
use shared::{
    directory::{read_from_leader, team_key},
    secrets::KeyRing,
    stream::{DIRECTORY_BUCKET, INGESTS_BUCKET},
    types::ConnectionId,
};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{OnceCell, Semaphore, watch},
    time::Instant,
};

/// Reads of the bucket at once, at most.
const READS_AT_ONCE: usize = 64;
/// One read.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// All connections, as ingest knows them. Cheap to clone.
#[derive(Clone)]
pub struct Directory(Arc<Inner>);

struct Inner {
    client: Client,
    js: jetstream::Context,
    /// Told to others when we report how far we are.
    name: String,
    buckets: OnceCell<Buckets>,
    memory: Memory,
    applied: watch::Sender<Option<u64>>,
    trusted_until: watch::Sender<Option<Instant>>,
    reading: Semaphore,
    reads: Counter,
    bounds: Mutex<Bounds>,
}

struct Buckets {
    connections: kv::Store,
    ingests: kv::Store,
}

/// A connection that was found.
#[derive(Debug)]
pub struct Found {
    /// The connection.
    pub connection: Arc<Connection>,
    /// Whether it is sure to be as it is now. If not, nothing may be stored for it.
    pub current: bool,
}

/// The bucket could not be asked, so nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the directory could not be read")]
pub struct Away;

impl Directory {
    /// An empty directory, of an ingest with a random name. [`Directory::follow`] and [`Directory::report`] fill it.
    pub fn new(client: Client, js: jetstream::Context, ring: KeyRing) -> Self {
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        Self(Arc::new(Inner {
            client,
            js,
            name: format!("{random:016x}"),
            buckets: OnceCell::new(),
            memory: Memory::new(ring),
            applied: watch::Sender::new(None),
            trusted_until: watch::Sender::new(None),
            reading: Semaphore::new(READS_AT_ONCE),
            reads: Counter::default(),
            bounds: Mutex::new(Bounds::new(std::time::Instant::now())),
        }))
    }

    /// Waits until it is complete and may be believed for the first time.
    pub async fn completed(&self) {
        let mut trusted = self.0.trusted_until.subscribe();
        let _ = trusted.wait_for(Option::is_some).await; // the sender is in `self`
    }

    /// Whether it ever was complete.
    pub fn is_complete(&self) -> bool {
        self.0.trusted_until.borrow().is_some()
    }

    /// How far it was read; `None` before the first pass is over.
    pub fn applied(&self) -> Option<u64> {
        *self.0.applied.borrow()
    }

    /// Connections in it.
    pub fn connections(&self) -> usize {
        self.0.memory.connections()
    }

    /// How often the bucket was read, for what memory does not have.
    pub fn reads(&self) -> Counter {
        self.0.reads.clone()
    }

    /// This ingest's name among the others.
    pub fn ingest(&self) -> &str {
        &self.0.name
    }

    /// A connection by id. `None`: there is none, as sure as can be.
    pub async fn find(&self, id: ConnectionId) -> Result<Option<Found>, Away> {
        let current = self.is_trusted();
        if current && let Some(known) = self.0.memory.connection(id) {
            return Ok(known.map(|connection| Found { connection, current }));
        }
        match self.read(&id.to_string()).await {
            Ok(()) => {
                let found = self.0.memory.connection(id).flatten();
                Ok(found.map(|connection| Found { connection, current: true }))
            }
            // Without the bucket nothing can be stored either, but a command's user can still be told so.
            Err(Away) => match self.0.memory.connection(id) {
                Some(Some(connection)) => Ok(Some(Found { connection, current: false })),
                _ => Err(Away),
            },
        }
    }

    /// The connection of a webhook of the shared route: its installation's, else the app's preview
    /// connection, else none. Never another tenant's.
    pub async fn route(&self, routing: &Routing) -> Result<Option<Found>, Away> {
        let (app, enterprise, team) =
            (&routing.app, routing.enterprise.as_ref(), routing.team.as_ref());
        // A workspace may be known with its organisation or without; an organisation-wide install has no team.
        let mut keys = vec![team_key(app, enterprise, team)];
        if enterprise.is_some() && team.is_some() {
            keys.push(team_key(app, None, team));
            keys.push(team_key(app, enterprise, None));
        }
        for key in keys {
            if let Some(found) = self.find_team(&key).await? {
                return Ok(Some(found));
            }
        }
        let preview = self.find_team(&team_key(app, None, None)).await?;
        Ok(preview.filter(|found| found.connection.preview_mode))
    }

    async fn find_team(&self, key: &str) -> Result<Option<Found>, Away> {
        let known = if self.is_trusted() { self.0.memory.team(key) } else { None };
        let id = match known {
            Some(id) => id,
            None => {
                let read = self.read(key).await;
                self.0.memory.team(key).or(read.is_ok().then_some(None)).ok_or(Away)?
            }
        };
        match id {
            // The connection says itself where it belongs; a team's key may be older.
            Some(id) => Ok(self.find(id).await?.filter(|found| found.connection.team_key == key)),
            None => Ok(None),
        }
    }

    /// A connection as the bucket has it now, when a signature failed: its secret may just have been changed.
    /// `None` when that would be too often, or nothing is newer.
    pub async fn reread(&self, known: &Connection) -> Option<Arc<Connection>> {
        if let Some(newer) = self.newer(known) {
            return Some(newer); // somebody else has just read it
        }
        if !self.bounds().may_reread(known.id, std::time::Instant::now()) {
            return None;
        }
        self.read(&known.id.to_string()).await.ok()?;
        self.newer(known)
    }

    fn newer(&self, known: &Connection) -> Option<Arc<Connection>> {
        let there = self.0.memory.connection(known.id)??;
        (there.version > known.version).then_some(there)
    }

    /// Reads a key of the bucket into memory, if it has it; within bounds. Boxed: it is rare and large, and a webhook's
    /// future is moved about a dozen times.
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), Away>> {
        Box::pin(async move {
            if self.0.client.connection_state() != State::Connected {
                return Err(Away);
            }
            match self.bounds().may_read(key, std::time::Instant::now()) {
                MayRead::Yes => {}
                MayRead::KnownMiss => return Ok(()),
                MayRead::TooMany => return self.believe(),
            }
            let Ok(_permit) = self.0.reading.try_acquire() else { return self.believe() };
            self.0.reads.inc();
            let read = async {
                let bucket = &self.0.buckets().await?.connections;
                read_from_leader(bucket, key).await.map_err(|_| Away)
            };
            let value = tokio::time::timeout(READ_TIMEOUT, read).await.map_err(|_| Away)??;
            match value {
                Some((value, _)) => self.0.memory.apply(key, &value),
                None => self.bounds().remember_miss(key),
            }
            Ok(())
        })
    }

    /// Too much is asked for to look. Memory that may be believed knows all that was announced; only of what was made
    /// this moment it may not have heard.
    fn believe(&self) -> Result<(), Away> {
        if self.is_trusted() { Ok(()) } else { Err(Away) }
    }

    fn is_trusted(&self) -> bool {
        self.0.trusted_until.borrow().is_some_and(|until| Instant::now() < until)
    }

    fn bounds(&self) -> MutexGuard<'_, Bounds> {
        self.0.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The buckets, which `tidegate migrate` makes; opened when first needed.
    async fn buckets(&self) -> Result<&Buckets, Away> {
        let open = async {
            let connections = self.js.get_key_value(DIRECTORY_BUCKET).await.map_err(|_| Away)?;
            let ingests = self.js.get_key_value(INGESTS_BUCKET).await.map_err(|_| Away)?;
            Ok(Buckets { connections, ingests })
        };
        self.buckets.get_or_try_init(|| open).await
    }
}
