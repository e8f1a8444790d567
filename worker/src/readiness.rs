//! Readiness of a worker: the obstacles that keep it from working, with remedies.
//!
//! `/readyz` answers 503 with a line per obstacle. Postgres is checked for obstacles at intervals;
//! the state of leases and of the access to the stream is known at any time.

use crate::{
    context::Context,
    intake::{LeaseRenewal, StreamAccess},
};
use shared::{runtime::telemetry::ErrorChain, stream::STREAM};
use std::{sync::Arc, time::Duration};
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

/// Interval at which Postgres is checked.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);
/// Interval while there are obstacles.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// Obstacles in Postgres. `None` before the first check.
type Found = Option<Vec<String>>;

/// Readiness of this worker. Cheap to clone.
#[derive(Clone)]
pub struct Readiness {
    renewal: LeaseRenewal,
    access: StreamAccess,
    found: watch::Receiver<Found>,
    /// Addresses of NATS.
    servers: String,
    stopping: CancellationToken,
}

/// Task that checks Postgres for obstacles.
pub struct ObstacleProbe {
    context: Arc<Context>,
    found: watch::Sender<Found>,
}

impl ObstacleProbe {
    pub fn new(context: Arc<Context>) -> Self {
        Self { context, found: watch::Sender::default() }
    }

    /// Checks Postgres at intervals until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let probing = async {
            loop {
                let found = match self.context.store.find_obstacles().await {
                    Ok(found) => found.iter().map(ToString::to_string).collect(),
                    Err(error) => vec![ErrorChain(&error).to_string()],
                };
                let is_clear = found.is_empty();
                self.found.send_replace(Some(found));
                sleep(if is_clear { PROBE_INTERVAL } else { RETRY_INTERVAL }).await;
            }
        };
        stop.run_until_cancelled(probing).await;
    }
}

impl Readiness {
    pub fn new(
        probe: &ObstacleProbe,
        renewal: LeaseRenewal,
        access: StreamAccess,
        servers: String,
        stopping: CancellationToken,
    ) -> Self {
        Self { renewal, access, found: probe.found.subscribe(), servers, stopping }
    }

    /// Returns the obstacles. Empty if the worker is ready.
    pub fn obstacles(&self) -> Vec<String> {
        let mut obstacles = Vec::new();
        if self.stopping.is_cancelled() {
            obstacles.push("worker is stopping".to_owned());
        }
        match &*self.found.borrow() {
            Some(found) => obstacles.extend(found.iter().cloned()),
            None => obstacles.push("Postgres has not answered yet".to_owned()),
        }
        if !self.renewal.is_recent() {
            obstacles.push("leases are not renewed in Postgres".to_owned());
        }
        if !self.access.works() {
            let error = self.access.error().unwrap_or_else(|| "no answer yet".to_owned());
            let servers = &self.servers;
            obstacles.push(format!(
                "failed to read stream {STREAM} from NATS at {servers}: {error}; \
                 check TIDEGATE_NATS_URL and TIDEGATE_NATS_NKEY_FILE, and run tidegate migrate"
            ));
        }
        obstacles
    }
}
