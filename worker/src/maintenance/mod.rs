//! What happens beside the flow of webhooks: retention, the directory, lanes of dead workers, replays, token refresh.
//!
//! What one worker at a time does belongs to the owner of partition 0; it is safe if two do it for a moment.

mod directory_sync;
mod replay;
mod retention;
mod token_refresh;

use crate::{context::Context, decider::Decider};
use async_nats::jetstream;
use shared::{partition::Partition, store::BacklogStats, telemetry::Chain};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Between two looks for lanes of dead workers.
const REAP_INTERVAL: Duration = Duration::from_millis(500);
/// Between two looks whether this worker owns the partition that is the lock.
const LOCK_INTERVAL: Duration = Duration::from_secs(1);
/// Workers that expired, looked at at once.
const EXPIRED_MAX: i64 = 16;

/// Runs until told to stop.
pub async fn run(
    context: Arc<Context>,
    js: jetstream::Context,
    decider: Decider,
    lease_ttl: Duration,
    stop: CancellationToken,
) {
    let tokens = token_refresh::run(
        context.store.clone(),
        context.slack.clone(),
        Arc::clone(&context.token_expired),
        stop.clone(),
    );
    let usage = context.usage.clone().run(context.store.clone(), stop.clone());
    let replays = replay::run(&context, &js, &decider, lease_ttl, &stop);
    tokio::join!(tokens, usage, replays, reap(&context, &stop), locked(&context, &js, &stop));
}

/// Frees the lanes and slots of workers whose row has expired.
async fn reap(context: &Context, stop: &CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(REAP_INTERVAL)).await.is_some() {
        let expired = match context.store.expired_workers(EXPIRED_MAX).await {
            Ok(expired) => expired,
            Err(error) => {
                warn!(error = %Chain(&error), "failed to look for expired workers");
                continue;
            }
        };
        for worker in expired {
            match context.store.free_worker(&worker, true).await {
                Ok(lanes) => {
                    info!(worker, lanes, "lanes of an expired worker freed");
                    context.wake_dispatch.notify_one();
                    context.wake_outbox.notify_one();
                }
                Err(error) => {
                    warn!(worker, error = %Chain(&error), "failed to free lanes of an expired worker");
                }
            }
        }
    }
}

/// Does what one worker at a time does, while this worker owns partition 0.
async fn locked(context: &Arc<Context>, js: &jetstream::Context, stop: &CancellationToken) {
    let lock = Partition::try_from(0).expect("0 is a partition");
    loop {
        let owned = context.partitions.all().contains(&lock);
        if owned {
            let held = CancellationToken::new();
            let guard = held.clone().drop_guard();
            let sync = directory_sync::run(context.store.clone(), js.clone(), held.clone());
            let retention = retention::run(context, held.clone());
            let lost = async {
                while context.partitions.all().contains(&lock) {
                    tokio::time::sleep(LOCK_INTERVAL).await;
                }
            };
            tokio::select! {
                _ = stop.cancelled() => return,
                () = lost => {}
                () = sync => {}
                () = retention => {}
            }
            drop(guard);
            context.metrics.record_backlog(BacklogStats::default()); // another worker tells now
        }
        if stop.run_until_cancelled(tokio::time::sleep(LOCK_INTERVAL)).await.is_none() {
            return;
        }
    }
}
