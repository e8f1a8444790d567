//! Deletes expired rows and counts the backlog for the metrics page.

use crate::context::Context;
use shared::{store::PruneStats, telemetry::Chain};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Interval between two rounds.
const INTERVAL: Duration = Duration::from_secs(10);
/// Maximum number of steps per round.
const STEPS_MAX: usize = 100;

/// Deletes until cancelled.
pub async fn run(context: &Context, until: CancellationToken) {
    let pruning = async {
        loop {
            for _ in 0..STEPS_MAX {
                let failed = |table: &str, error| {
                    warn!(table, error = %Chain(&error), "failed to prune table");
                };
                let stats = context.store.prune_expired(failed).await;
                if stats == PruneStats::default() {
                    break;
                }
                info!(rows = ?stats.rows, slots = ?stats.slots, "expired rows deleted");
            }
            for _ in 0..STEPS_MAX {
                match context.store.end_unreachable_deliveries().await {
                    Ok(0) => break,
                    Ok(ended) => info!(ended, "unreachable deliveries ended"),
                    Err(error) => {
                        warn!(error = %Chain(&error), "failed to end unreachable deliveries");
                        break;
                    }
                }
            }
            match context.store.delete_late_traffic().await {
                Ok(0) => {}
                Ok(rows) => info!(rows, "rows of deleted connections deleted"),
                Err(error) => {
                    warn!(error = %Chain(&error), "failed to delete rows of deleted connections");
                }
            }
            match context.store.backlog_stats().await {
                Ok(stats) => context.metrics.record_backlog(stats),
                Err(error) => warn!(error = %Chain(&error), "failed to count the backlog"),
            }
            tokio::time::sleep(INTERVAL).await;
        }
    };
    until.run_until_cancelled(pruning).await;
}
