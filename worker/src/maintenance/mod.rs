//! Periodic tasks: retention, erasures, directory sync, notifications, approvals, backlog counts,
//! lanes of expired workers, replays, token refresh.
//!
//! Run by `app`. Exclusive tasks run on one worker at a time, the owner of partition 0; two owners
//! for a moment do no harm.

mod approvals;
mod backlog;
mod directory_sync;
mod erasures;
mod notifications;
mod replay;
mod retention;
mod token_refresh;

use crate::{context::Context, decider::Decider};
use async_nats::jetstream;
use shared::{
    runtime::telemetry::ErrorChain,
    store::{BacklogLimits, BacklogStats, NotificationStats},
    stream::Partition,
};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Interval of looking for expired workers.
const REAP_INTERVAL: Duration = Duration::from_millis(500);
/// Interval at which the ownership of partition 0 is checked.
const LOCK_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum number of expired workers per query.
const EXPIRED_MAX: i64 = 16;

/// Runs all tasks until `stop`.
pub async fn run(
    context: Arc<Context>,
    js: jetstream::Context,
    decider: Decider,
    lease_ttl: Duration,
    limits: BacklogLimits,
    stop: CancellationToken,
) {
    let tokens = token_refresh::run(
        context.store.clone(),
        context.slack.clone(),
        Arc::clone(&context.metrics),
        Arc::clone(&context.token_expired),
        stop.clone(),
    );
    let replays = replay::run(&context, &js, &decider, lease_ttl, &stop);
    tokio::join!(
        tokens,
        replays,
        free_expired_workers(&context, &stop),
        run_exclusive(&context, &js, limits, &stop)
    );
}

/// Frees the lanes and agent slots of workers whose row expired.
async fn free_expired_workers(context: &Context, stop: &CancellationToken) {
    while stop.run_until_cancelled(tokio::time::sleep(REAP_INTERVAL)).await.is_some() {
        let expired = match context.store.expired_workers(EXPIRED_MAX).await {
            Ok(expired) => expired,
            Err(error) => {
                warn!(error = %ErrorChain(&error), "failed to query expired workers");
                continue;
            }
        };
        for worker in expired {
            match context.store.free_worker(&worker, true).await {
                Ok(lanes) => {
                    info!(worker, lanes, "lanes of expired worker freed");
                    context.wake_dispatch.notify_one();
                    context.wake_outbox.notify_one();
                }
                Err(error) => {
                    warn!(
                        worker, error = %ErrorChain(&error),
                        "failed to free lanes of expired worker"
                    );
                }
            }
        }
    }
}

/// Runs the exclusive tasks while this worker owns partition 0.
async fn run_exclusive(
    context: &Arc<Context>,
    js: &jetstream::Context,
    limits: BacklogLimits,
    stop: &CancellationToken,
) {
    let lock = Partition::try_from(0).expect("0 is a partition");
    loop {
        let owned = context.partitions.all().contains(&lock);
        if owned {
            let held = CancellationToken::new();
            let guard = held.clone().drop_guard();
            let sync = directory_sync::run(context.store.clone(), js.clone(), held.clone());
            let retention = retention::run(context, js, held.clone());
            let erasures = erasures::run(context, js, held.clone());
            let backlog = backlog::run(context, limits, held.clone());
            let approvals = approvals::run(context, held.clone());
            let notifications = notifications::run(context, held.clone());
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
                () = erasures => {}
                () = backlog => {}
                () = approvals => {}
                () = notifications => {}
            }
            drop(guard);
            context.metrics.record_backlog(&BacklogStats::default()); // another worker reports it
            context.metrics.record_notifications(&NotificationStats::default());
        }
        if stop.run_until_cancelled(tokio::time::sleep(LOCK_INTERVAL)).await.is_none() {
            return;
        }
    }
}
