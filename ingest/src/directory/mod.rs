//! Ingest's copy of connections and apps: ids, status and signing secrets.
//!
//! Follows the NATS bucket `connections` from its beginning, and is complete before the first
//! webhook is accepted. A connection that is not in the cache may have just been created, so the
//! bucket is read before a webhook is refused. These reads are limited, and a miss is cached for up
//! to 2 s, so that made-up ids are cheap. While the cache is not trusted (see `follower`), every
//! lookup reads the bucket. Postgres is never read.

mod cache;
mod follower;
mod lookup_limiter;
mod signing_key;

pub use cache::{App, Connection};
pub use signing_key::SigningKey;

use async_nats::{
    Client,
    connection::State,
    jetstream::{self, kv},
};
use cache::Cache;
use futures_util::future::BoxFuture;
use lookup_limiter::{LookupDecision, LookupLimiter};
use prometheus_client::metrics::counter::Counter;
use shared::{
    directory::{app_key, read_from_leader, team_key},
    domain::{AppId, ConnectionId},
    secrets::KeyRing,
    slack::Installation,
    stream::{DIRECTORY_BUCKET, INGESTS_BUCKET},
};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};
use tokio::{
    sync::{OnceCell, Semaphore, watch},
    time::Instant,
};

/// Maximum concurrent reads of the bucket.
const MAX_CONCURRENT_READS: usize = 64;
/// Maximum time of one read.
const READ_TIMEOUT: Duration = Duration::from_secs(1);

/// Directory of all connections. Cheap to clone.
#[derive(Clone)]
pub struct Directory(Arc<Inner>);

struct Inner {
    client: Client,
    js: jetstream::Context,
    /// Key of this ingest in the bucket `ingests`.
    ingest_name: String,
    buckets: OnceCell<Buckets>,
    cache: Cache,
    revision: watch::Sender<Option<u64>>,
    trusted_until: watch::Sender<Option<Instant>>,
    live_ingests: AtomicU32,
    read_permits: Semaphore,
    cache_misses: Counter,
    limiter: Mutex<LookupLimiter>,
}

struct Buckets {
    connections: kv::Store,
    ingests: kv::Store,
}

/// Result of a successful lookup.
#[derive(Debug)]
pub struct FoundConnection {
    /// The connection.
    pub connection: Arc<Connection>,
    /// False if the connection may have changed meanwhile. Its webhooks must not be stored then.
    pub is_current: bool,
}

/// Failure to read the directory bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("failed to read directory")]
pub struct DirectoryUnavailableError;

fn unavailable<E>(_: E) -> DirectoryUnavailableError {
    DirectoryUnavailableError
}

impl Directory {
    /// Creates an empty directory under a random ingest name. [`Directory::follow`] and
    /// [`Directory::report_revision`] fill it.
    pub fn new(client: Client, js: jetstream::Context, keyring: KeyRing) -> Self {
        let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
        Self(Arc::new(Inner {
            client,
            js,
            ingest_name: format!("{random:016x}"),
            buckets: OnceCell::new(),
            cache: Cache::new(keyring),
            revision: watch::Sender::new(None),
            trusted_until: watch::Sender::new(None),
            live_ingests: AtomicU32::new(1),
            read_permits: Semaphore::new(MAX_CONCURRENT_READS),
            cache_misses: Counter::default(),
            limiter: Mutex::new(LookupLimiter::new(std::time::Instant::now())),
        }))
    }

    /// Waits until the directory is complete and trusted for the first time.
    pub async fn wait_until_complete(&self) {
        let mut trusted = self.0.trusted_until.subscribe();
        let _ = trusted.wait_for(Option::is_some).await; // `self` holds the sender
    }

    /// Returns whether the directory has ever been complete.
    pub fn is_complete(&self) -> bool {
        self.0.trusted_until.borrow().is_some()
    }

    /// Returns the revision up to which the bucket is applied, or `None` during the first pass.
    pub fn revision(&self) -> Option<u64> {
        *self.0.revision.borrow()
    }

    /// Returns the number of connections.
    pub fn connection_count(&self) -> usize {
        self.0.cache.connection_count()
    }

    /// Returns whether the keyring opens none of the signing secrets of connections and apps. False
    /// without secrets.
    pub fn unseals_no_secret(&self) -> bool {
        self.0.cache.unseals_no_secret()
    }

    /// Returns the counter of bucket reads caused by cache misses.
    pub fn cache_misses(&self) -> Counter {
        self.0.cache_misses.clone()
    }

    /// Returns the name of this ingest, unique among all ingests.
    pub fn ingest_name(&self) -> &str {
        &self.0.ingest_name
    }

    /// Returns the number of live ingests, at least 1 and up to a few seconds old.
    pub fn live_ingests(&self) -> u32 {
        self.0.live_ingests.load(Ordering::Relaxed)
    }

    /// Finds a connection by id.
    pub async fn find(
        &self,
        id: ConnectionId,
    ) -> Result<Option<FoundConnection>, DirectoryUnavailableError> {
        let is_current = self.is_trusted();
        if is_current && let Some(cached) = self.0.cache.connection(id) {
            return Ok(cached.map(|connection| FoundConnection { connection, is_current }));
        }
        let read = self.read(&id.to_string()).await;
        match (read, self.0.cache.connection(id)) {
            (Ok(()), cached) => {
                let connection = cached.flatten();
                Ok(connection.map(|connection| FoundConnection { connection, is_current: true }))
            }
            // Without the bucket nothing is stored, but the user of a command gets a notice.
            (Err(_), Some(Some(connection))) => {
                Ok(Some(FoundConnection { connection, is_current: false }))
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Finds a declared app by id.
    pub async fn app(&self, id: &AppId) -> Result<Option<Arc<App>>, DirectoryUnavailableError> {
        if self.is_trusted()
            && let Some(cached) = self.0.cache.app(id)
        {
            return Ok(cached);
        }
        let read = self.read(&app_key(id)).await;
        match self.0.cache.app(id) {
            Some(cached) => Ok(cached),
            None => read.map(|()| None),
        }
    }

    /// Returns all declared apps.
    pub fn apps(&self) -> Vec<Arc<App>> {
        self.0.cache.apps()
    }

    /// Finds the connection of a webhook on the shared route: the connection of an installation
    /// that it names, otherwise the app's preview connection. Never returns the connection of
    /// another installation.
    pub async fn route(
        &self,
        app: &AppId,
        installations: &[Installation],
    ) -> Result<Option<FoundConnection>, DirectoryUnavailableError> {
        for Installation { enterprise, team } in installations {
            let (enterprise, team) = (enterprise.as_ref(), team.as_ref());
            // A workspace without its own connection may be part of an organization-wide install.
            let of_organization = enterprise.and(team).map(|_| team_key(app, enterprise, None));
            for key in [Some(team_key(app, enterprise, team)), of_organization] {
                let Some(key) = key else { continue };
                if let Some(found) = self.find_by_team_key(&key).await? {
                    return Ok(Some(found));
                }
            }
        }
        if installations.is_empty() {
            return Ok(None);
        }
        let preview = self.find_by_team_key(&team_key(app, None, None)).await?;
        Ok(preview.filter(|found| found.connection.preview_mode))
    }

    async fn find_by_team_key(
        &self,
        key: &str,
    ) -> Result<Option<FoundConnection>, DirectoryUnavailableError> {
        let cached = if self.is_trusted() { self.0.cache.team_connection(key) } else { None };
        let id = match cached {
            Some(id) => id,
            None => {
                let read = self.read(key).await;
                match self.0.cache.team_connection(key) {
                    Some(id) => id,
                    None => read.map(|()| None)?,
                }
            }
        };
        let Some(id) = id else { return Ok(None) };
        // The connection's own entry decides; the entry of the team key may be older.
        Ok(self.find(id).await?.filter(|found| found.connection.team_key == key))
    }

    /// Reads a connection again after a bad signature: its secret may have just changed. Returns
    /// `None` if the bucket has no newer version or the connection was refreshed a moment ago.
    pub async fn refresh(&self, known: &Connection) -> Option<Arc<Connection>> {
        if let Some(newer) = self.newer(known) {
            return Some(newer); // another request has already read the bucket
        }
        if !self.limiter().allow_refresh(known.id, std::time::Instant::now()) {
            return None;
        }
        self.read(&known.id.to_string()).await.ok()?;
        self.newer(known)
    }

    fn newer(&self, known: &Connection) -> Option<Arc<Connection>> {
        let cached = self.0.cache.connection(known.id)??;
        (cached.version > known.version).then_some(cached)
    }

    /// Reads a key of the bucket into the cache, within the limits. Boxed because it is rarely
    /// called and large: a webhook's future is moved about a dozen times.
    fn read<'a>(&'a self, key: &'a str) -> BoxFuture<'a, Result<(), DirectoryUnavailableError>> {
        Box::pin(async move {
            if self.0.client.connection_state() != State::Connected {
                return Err(DirectoryUnavailableError);
            }
            match self.limiter().check_lookup(key, std::time::Instant::now()) {
                LookupDecision::Allowed => {}
                LookupDecision::KnownMiss => return Ok(()),
                LookupDecision::LimitReached => return self.trust_cache(),
            }
            let Ok(_permit) = self.0.read_permits.try_acquire() else { return self.trust_cache() };
            self.0.cache_misses.inc();
            let read = async {
                let bucket = &self.0.buckets().await?.connections;
                read_from_leader(bucket, key).await.map_err(unavailable)
            };
            match tokio::time::timeout(READ_TIMEOUT, read).await.map_err(unavailable)?? {
                Some((value, _)) => self.0.cache.apply(key, &value),
                None => self.limiter().record_miss(key),
            }
            Ok(())
        })
    }

    /// Accepts the cache in place of a read when a limit is reached. Fails if it is not trusted. A
    /// trusted cache has every announced change; only a connection created just now may be missing.
    fn trust_cache(&self) -> Result<(), DirectoryUnavailableError> {
        if self.is_trusted() { Ok(()) } else { Err(DirectoryUnavailableError) }
    }

    fn is_trusted(&self) -> bool {
        self.0.trusted_until.borrow().is_some_and(|until| Instant::now() < until)
    }

    fn limiter(&self) -> MutexGuard<'_, LookupLimiter> {
        self.0.limiter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Opens the buckets on first use. `tidegate migrate` creates them.
    async fn buckets(&self) -> Result<&Buckets, DirectoryUnavailableError> {
        let open = async {
            let connections = self.js.get_key_value(DIRECTORY_BUCKET).await.map_err(unavailable)?;
            let ingests = self.js.get_key_value(INGESTS_BUCKET).await.map_err(unavailable)?;
            Ok(Buckets { connections, ingests })
        };
        self.buckets.get_or_try_init(|| open).await
    }
}
