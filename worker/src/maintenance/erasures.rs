//! Runs requested erasures.

use crate::context::Context;
use async_nats::jetstream;
use shared::{
    operations::{ERASURE_INTERVAL, Operations},
    runtime::telemetry::ErrorChain,
};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Interval of looking for due erasures.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Note on an erasure that failed. The log has the cause.
const FAILED: &str = "failed; it is retried";

/// Runs due erasures until cancelled. An erasure is idempotent.
pub async fn run(context: &Context, js: &jetstream::Context, until: CancellationToken) {
    let erasing = async {
        loop {
            match context.store.due_erasure().await {
                Ok(None) => {}
                Ok(Some(erasure)) => {
                    let id = &erasure.id;
                    let operations =
                        Operations::new(context.store.clone(), erasure.requested_by.clone());
                    match operations.run_erasure(js, &erasure).await {
                        Ok(true) => info!(erasure = id, "erasure completed"),
                        Ok(false) => info!(erasure = id, "erasure postponed"),
                        Err(error) => {
                            warn!(erasure = id, error = %ErrorChain(&error), "failed to run erasure");
                            let open = Some((FAILED, ERASURE_INTERVAL));
                            if let Err(error) = context.store.record_erasure(id, 0, 0, open).await {
                                let error = ErrorChain(&error);
                                warn!(erasure = id, %error, "failed to postpone erasure");
                            }
                        }
                    }
                }
                Err(error) => warn!(error = %ErrorChain(&error), "failed to query due erasures"),
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    until.run_until_cancelled(erasing).await;
}
