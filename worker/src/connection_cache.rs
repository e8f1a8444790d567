//! Cache of recently used connections, with their tokens.
//!
//! Concurrent requests for a connection share one query. A row is dropped when Postgres notifies a
//! change, and after 30 seconds, since notifications can be lost. Used for calls to agents and
//! Slack. Decisions that end a webhook or a message read Postgres (see
//! [`ConnectionCache::read_through`]).

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family},
};
use shared::{
    domain::ConnectionId,
    runtime::telemetry::ErrorChain,
    store::{Connection, Store, StoreError},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{sync::OnceCell, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Time after which a row is read again, in case a notification was lost.
const CACHED_FOR: Duration = Duration::from_secs(30);
/// Maximum number of connections in the cache. Expired entries are evicted first, then arbitrary
/// ones.
const CACHED_MAX: usize = 20_000;
/// Wait before listening for changes again.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

pub struct ConnectionCache {
    store: Store,
    entries: Mutex<HashMap<ConnectionId, Arc<CacheEntry>>>,
    requests: Family<RequestLabels, Counter>,
}

/// Label of a request: its result.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct RequestLabels {
    result: &'static str,
}

struct CacheEntry {
    since: Instant,
    row: OnceCell<Option<Arc<Connection>>>,
}

impl ConnectionCache {
    pub fn new(store: Store) -> Self {
        Self { store, entries: Mutex::default(), requests: Family::default() }
    }

    /// Returns the connection in any status, or `None` if it does not exist.
    pub async fn connection(
        &self,
        id: ConnectionId,
    ) -> Result<Option<Arc<Connection>>, StoreError> {
        let entry = self.entry(id, Instant::now());
        let mut result = "hit";
        let read = async || {
            result = "miss";
            Ok(self.store.load_connection(id).await?.map(Arc::new))
        };
        let row = entry.row.get_or_try_init(read).await.cloned();
        let result = if row.is_ok() { result } else { "failed" };
        self.requests.get_or_create(&RequestLabels { result }).inc();
        row
    }

    /// Reads the connection from Postgres and caches it.
    pub async fn read_through(
        &self,
        id: ConnectionId,
    ) -> Result<Option<Arc<Connection>>, StoreError> {
        drop(self.entries().remove(&id));
        self.connection(id).await
    }

    /// Returns the counter of requests by result: `hit` (from memory), `miss` (by a query),
    /// `failed`.
    pub fn requests(&self) -> Family<RequestLabels, Counter> {
        self.requests.clone()
    }

    /// Returns the entry of a connection, which concurrent requests share.
    fn entry(&self, id: ConnectionId, now: Instant) -> Arc<CacheEntry> {
        let mut entries = self.entries();
        if entries.len() >= CACHED_MAX {
            entries.retain(|_, entry| now.duration_since(entry.since) < CACHED_FOR);
            while entries.len() >= CACHED_MAX
                && let Some(any) = entries.keys().next().copied()
            {
                entries.remove(&any);
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

    /// Drops rows when Postgres notifies a change, until `stop` is cancelled.
    pub async fn subscribe(self: Arc<Self>, stop: CancellationToken) {
        let listening = async {
            loop {
                if let Err(error) = self.listen().await {
                    warn!(error = %ErrorChain(&error), "failed to listen for connection changes");
                }
                // Notifications are lost until the next subscription.
                self.entries().clear();
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        stop.run_until_cancelled(listening).await;
    }

    async fn listen(&self) -> Result<(), StoreError> {
        let mut changes = self.store.subscribe_connection_changes().await?;
        self.entries().clear();
        loop {
            match changes.next().await? {
                // A request that waits for a query from before the change gets its result; later
                // requests begin a new query.
                Some(id) => drop(self.entries().remove(&id)),
                None => self.entries().clear(),
            }
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<ConnectionId, Arc<CacheEntry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
