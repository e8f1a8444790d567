//! Expires approvals that were not decided in time.

use crate::{context::Context, routing};
use shared::{
    domain::{Destination, OutgoingMessage},
    runtime::telemetry::ErrorChain,
    store::ExpiredApproval,
};
use std::time::Duration;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Interval of looking for expired approvals.
const INTERVAL: Duration = Duration::from_secs(1);

/// Expires approvals until cancelled.
pub async fn run(context: &Context, until: CancellationToken) {
    let message = |expired: &ExpiredApproval| OutgoingMessage {
        to: Destination::UpdateMessage {
            channel: expired.channel.clone(),
            ts: expired.message_ts.clone(),
        },
        message: routing::expired_approval(&expired.content),
    };
    let expiring = async {
        loop {
            match context.store.expire_approvals(message).await {
                Ok(0) => tokio::time::sleep(INTERVAL).await,
                Ok(approvals) => {
                    info!(approvals, "approvals expired");
                    context.wake_outbox.notify_one();
                }
                Err(error) => {
                    warn!(error = %ErrorChain(&error), "failed to expire approvals");
                    tokio::time::sleep(INTERVAL).await;
                }
            }
        }
    };
    until.run_until_cancelled(expiring).await;
}
