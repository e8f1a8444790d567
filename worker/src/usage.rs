//! Usage counters per connection, added to those in Postgres once a minute, outside the commits of
//! intake.

use shared::{
    domain::ConnectionId,
    runtime::telemetry::ErrorChain,
    store::{Decision, Store, UsageRow},
};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Interval between two writes.
const INTERVAL: Duration = Duration::from_secs(60);
/// Maximum number of connections counted between two writes; others are not counted.
const CONNECTIONS_MAX: usize = 50_000;
/// Maximum number of connections per statement.
const STEP_CONNECTIONS: usize = 1_000;

/// Usage counters per connection. Clones share them.
#[derive(Clone, Default)]
pub struct UsageCounters(Arc<Mutex<HashMap<ConnectionId, UsageRow>>>);

impl UsageCounters {
    pub fn record_webhook(&self, connection: ConnectionId, decision: &Decision) {
        self.count(connection, |row| {
            row.webhooks += 1;
            row.ignored += i64::from(matches!(decision, Decision::Ignore { .. }));
            let delivered = matches!(decision, Decision::Apply(e) if e.delivery.is_some());
            row.deliveries += i64::from(delivered);
        });
    }

    pub fn record_attempt(&self, connection: ConnectionId, took: Duration, failed: bool) {
        self.count(connection, |row| {
            row.attempts += 1;
            row.agent_ms += i64::try_from(took.as_millis()).unwrap_or(0);
            row.failures += i64::from(failed);
        });
    }

    pub fn record_reply(&self, connection: ConnectionId) {
        self.count(connection, |row| row.replies += 1);
    }

    fn count(&self, connection: ConnectionId, add: impl FnOnce(&mut UsageRow)) {
        let mut rows = self.rows();
        if rows.len() < CONNECTIONS_MAX || rows.contains_key(&connection) {
            add(rows.entry(connection).or_default());
        }
    }

    fn rows(&self) -> MutexGuard<'_, HashMap<ConnectionId, UsageRow>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the counters every minute and once more on shutdown.
    pub async fn run(self, store: Store, stop: CancellationToken) {
        loop {
            let stopped = stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await.is_none();
            let mut rows = std::mem::take(&mut *self.rows()).into_iter();
            while rows.len() > 0 {
                let step: HashMap<_, _> = rows.by_ref().take(STEP_CONNECTIONS).collect();
                if let Err(error) = store.add_usage(&step).await {
                    let (error, connections) = (ErrorChain(&error), step.len());
                    warn!(%error, connections, "failed to record usage");
                }
            }
            if stopped {
                return;
            }
        }
    }
}
