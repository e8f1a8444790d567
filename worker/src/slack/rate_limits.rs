//! Limits calls to Slack: one at a time per method and connection in a worker, none while Slack
//! limits the method.
//!
//! A call needs a [`CallPermit`]. Slack's limits are close to the rate of sequential calls, so this
//! costs little, and at most one call per worker exceeds a limit. A limit is recorded in
//! Postgres, which stops claims and notifies the other workers (see the store's
//! `outbox::rate_limits`).

use shared::{
    domain::ConnectionId,
    runtime::telemetry::ErrorChain,
    store::{Store, StoreError},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    sync::{Mutex as Gate, OwnedMutexGuard},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Maximum wait for a permit.
const PERMIT_TIMEOUT: Duration = Duration::from_secs(2);
/// Wait before listening for limits again, or before another request for a permit.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Number of gates above which unused ones are dropped.
const GATES_MAX: usize = 4096;

type Key = (ConnectionId, String);

/// Known rate limits. Cheap to clone.
#[derive(Clone)]
pub struct RateLimits(Arc<Inner>);

struct Inner {
    store: Store,
    table: Mutex<Table>,
}

#[derive(Default)]
struct Table {
    blocked: HashMap<Key, Instant>,
    gates: HashMap<Key, Arc<Gate<()>>>,
}

/// Permit to call a method for a connection once.
pub struct CallPermit {
    pub(super) connection: ConnectionId,
    pub(super) method: &'static str,
    _gate: OwnedMutexGuard<()>,
}

impl RateLimits {
    pub fn new(store: Store) -> Self {
        Self(Arc::new(Inner { store, table: Mutex::default() }))
    }

    /// Waits for a permit, up to [`PERMIT_TIMEOUT`]. Returns the time to wait if there is none.
    pub async fn permit(
        &self,
        connection: ConnectionId,
        method: &'static str,
    ) -> Result<CallPermit, Duration> {
        let key = (connection, method.to_owned());
        self.check(&key)?;
        let gate = self.table().gate(&key);
        let gate = tokio::time::timeout(PERMIT_TIMEOUT, gate.lock_owned())
            .await
            .map_err(|_| RETRY_INTERVAL)?;
        self.check(&key)?; // the previous call may have hit a limit
        Ok(CallPermit { connection, method, _gate: gate })
    }

    /// Applies a limit in this worker and records it for the others.
    pub async fn record_limit(
        &self,
        connection: ConnectionId,
        method: &str,
        retry_after: Duration,
    ) {
        self.block(connection, method, retry_after);
        if let Err(error) = self.0.store.record_rate_limit(connection, method, retry_after).await {
            warn!(error = %ErrorChain(&error), method, "failed to record rate limit");
        }
    }

    /// Applies limits that other workers recorded, until `stop`.
    pub async fn subscribe(self, stop: CancellationToken) {
        let listening = async {
            loop {
                if let Err(error) = self.listen().await {
                    warn!(error = %ErrorChain(&error), "failed to listen for rate limits");
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        stop.run_until_cancelled(listening).await;
    }

    async fn listen(&self) -> Result<(), StoreError> {
        let mut limits = self.0.store.subscribe_rate_limits().await?;
        loop {
            if let Some(limit) = limits.next().await? {
                self.block(limit.connection, &limit.method, limit.left);
            }
        }
    }

    fn block(&self, connection: ConnectionId, method: &str, left: Duration) {
        let now = Instant::now();
        let mut table = self.table();
        table.blocked.retain(|_, until| *until > now);
        let until = table.blocked.entry((connection, method.to_owned())).or_insert(now);
        *until = (*until).max(now + left);
    }

    fn check(&self, key: &Key) -> Result<(), Duration> {
        let left = self
            .table()
            .blocked
            .get(key)
            .map(|until| until.saturating_duration_since(Instant::now()));
        left.filter(|left| !left.is_zero()).map_or(Ok(()), Err)
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn gate(&mut self, key: &Key) -> Arc<Gate<()>> {
        if self.gates.len() >= GATES_MAX {
            self.gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        }
        Arc::clone(self.gates.entry(key.clone()).or_default())
    }
}
