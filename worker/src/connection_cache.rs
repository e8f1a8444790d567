//! Connections that were needed lately, with their tokens.
//!
//! One query for a connection however many wait for it; its row is kept for half a minute, and dropped as soon as Postgres
//! tells that it changed. Word of that can get lost, hence the half minute. Used to call agents and Slack; what ends a webhook
//! or a message is read from Postgres (see [`ConnectionCache::read_through`]). Never writes the row.

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use shared::{
    store::{Connection, Store, StoreError},
    telemetry::Chain,
    types::ConnectionId,
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::OnceCell, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// A row is read again after this long, in case word of a change got lost.
const CACHED_FOR: Duration = Duration::from_secs(30);
/// Connections kept at most; then those that are too old go, and if that is not enough all.
const CACHED_MAX: usize = 20_000;
/// Between two tries to listen.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Connections that were needed lately.
pub struct ConnectionCache {
    store: Store,
    entries: Mutex<HashMap<ConnectionId, Arc<CacheEntry>>>,
    requests: Family<RequestLabels, Counter>,
}

/// How a question for a connection ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    result: &'static str,
}

struct CacheEntry {
    since: Instant,
    row: OnceCell<Option<Arc<Connection>>>,
}

impl ConnectionCache {
    /// Nothing kept yet.
    pub fn new(store: Store) -> Self {
        Self { store, entries: Mutex::default(), requests: Family::default() }
    }

    /// The row, whatever its status; `None` when there is none.
    pub async fn connection(
        &self,
        id: ConnectionId,
    ) -> Result<Option<Arc<Connection>>, StoreError> {
        let entry = self.entry(id, Instant::now());
        let mut result = "hit";
        let read = async || {
            result = "miss";
            Ok(self.store.hydrate_connection(id).await?.map(Arc::new))
        };
        let row = entry.row.get_or_try_init(read).await.cloned();
        let result = if row.is_ok() { result } else { "failed" };
        self.requests.get_or_create(&RequestLabels { result }).inc();
        row
    }

    /// The row as it is in Postgres now; the cache is brought up to date.
    pub async fn read_through(
        &self,
        id: ConnectionId,
    ) -> Result<Option<Arc<Connection>>, StoreError> {
        drop(self.entries().remove(&id));
        self.connection(id).await
    }

    /// Requests: `hit` from memory, `miss` by a query, `failed`.
    pub fn requests(&self) -> Family<RequestLabels, Counter> {
        self.requests.clone()
    }

    /// The entry that everybody who asks now shares.
    fn entry(&self, id: ConnectionId, now: Instant) -> Arc<CacheEntry> {
        let mut entries = self.entries();
        if entries.len() >= CACHED_MAX {
            entries.retain(|_, entry| now.duration_since(entry.since) < CACHED_FOR);
            while entries.len() >= CACHED_MAX
                && let Some(oldest) = entries.keys().next().copied()
            {
                entries.remove(&oldest);
            }
        }
        if let Some(entry) = entries.get(&id)
            && now.duration_since(entry.since) < CACHED_FOR
        {
            return Arc::clone(entry);
        }
        let fresh = Arc::new(CacheEntry { since: now, row: OnceCell::new() });
        entries.insert(id, Arc::clone(&fresh));
        fresh
    }

    /// Drops what changed, as Postgres tells of it, until told to stop.
    pub async fn listen(self: Arc<Self>, stop: CancellationToken) {
        let listening = async {
            loop {
                if let Err(error) = self.listen_once().await {
                    warn!(error = %Chain(&error), "failed to listen for changes of connections");
                }
                // Whatever was said meanwhile was not heard.
                self.entries().clear();
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        tokio::select! { _ = stop.cancelled() => {}, () = listening => {} }
    }

    async fn listen_once(&self) -> Result<(), StoreError> {
        let mut changes = self.store.connection_changes().await?;
        self.entries().clear();
        loop {
            match changes.next().await? {
                // Who waits for a query that began before the change gets what that gives; who comes after begins another.
                Some(id) => drop(self.entries().remove(&id)),
                None => self.entries().clear(),
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<ConnectionId, Arc<CacheEntry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
