//! Who may call Slack now: one call at a time per method and workspace in a worker, none while Slack asked for silence.
//!
//! In: a connection and a method. Out: a [`CallPermit`], without which there is no call, or how long to wait. Slack's own limits
//! are near what one caller after the other reaches, so nothing is lost by calling in permit, and when a limit is hit at most
//! one call per worker is under way to hear it. What Slack says then is written to Postgres, which keeps it from all who
//! take rows and tells the others, for what they have taken already (see the store's `outbox::rate_limits`).

use shared::{
    store::{Store, StoreError},
    telemetry::Chain,
    types::ConnectionId,
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

/// Longest wait for one's permit.
const WAIT: Duration = Duration::from_secs(2);
/// Between two tries to listen.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Entries kept before those that are over are thrown away.
const KEPT: usize = 4096;

type Key = (ConnectionId, String);

/// What is known of Slack's limits. Cheap to clone.
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

/// The right to call a method for a connection, once.
pub struct CallPermit {
    pub(super) connection: ConnectionId,
    pub(super) method: &'static str,
    _gate: OwnedMutexGuard<()>,
}

impl RateLimits {
    /// Nothing is limited yet.
    pub fn new(store: Store) -> Self {
        Self(Arc::new(Inner { store, table: Mutex::default() }))
    }

    /// Waits for a permit, not for long; else, how long to stay away.
    pub async fn permit(
        &self,
        connection: ConnectionId,
        method: &'static str,
    ) -> Result<CallPermit, Duration> {
        let key = (connection, method.to_owned());
        self.free(&key)?;
        let gate = self.table().gate(&key);
        let gate =
            tokio::time::timeout(WAIT, gate.lock_owned()).await.map_err(|_| RETRY_INTERVAL)?;
        self.free(&key)?; // whoever was before us may have heard of a limit
        Ok(CallPermit { connection, method, _gate: gate })
    }

    /// Slack asked us to leave a method of a workspace alone. This worker knows at once, the others in a moment.
    pub async fn limited(&self, connection: ConnectionId, method: &str, retry_after: Duration) {
        self.block(connection, method, retry_after);
        if let Err(error) = self.0.store.limit_slack(connection, method, retry_after).await {
            warn!(error = %Chain(&error), method, "failed to record rate limit");
        }
    }

    /// Hears what the other workers were told, until told to stop.
    pub async fn listen(self, stop: CancellationToken) {
        let listening = async {
            loop {
                if let Err(error) = self.listen_once().await {
                    warn!(error = %Chain(&error), "failed to listen for rate limits");
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        tokio::select! { _ = stop.cancelled() => {}, () = listening => {} }
    }

    async fn listen_once(&self) -> Result<(), StoreError> {
        let mut limits = self.0.store.slack_rate_limits().await?;
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

    fn free(&self, key: &Key) -> Result<(), Duration> {
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
        if self.gates.len() >= KEPT {
            self.gates.retain(|_, gate| Arc::strong_count(gate) > 1);
        }
        Arc::clone(self.gates.entry(key.clone()).or_default())
    }
}
