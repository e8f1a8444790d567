//! Expires approvals that were not decided in time.

use crate::{context::Context, routing};
use bytes::Bytes;
use serde_json::json;
use shared::{
    domain::{APPROVAL_ACTION_PREFIX, Destination, OutgoingMessage},
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
    let expiring = async {
        loop {
            match context.store.expire_approvals(message, body).await {
                Ok(0) => tokio::time::sleep(INTERVAL).await,
                Ok(approvals) => {
                    info!(approvals, "approvals expired");
                    context.wake_outbox.notify_one();
                    context.wake_dispatch.notify_one();
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

/// Returns the message that replaces the one with the buttons.
fn message(expired: &ExpiredApproval) -> Option<OutgoingMessage> {
    let (content, ts) = (expired.content.as_ref()?, expired.message_ts.clone()?);
    let to = Destination::UpdateMessage { channel: expired.channel.clone(), ts };
    Some(OutgoingMessage { to, message: routing::expired_approval_message(content) })
}

/// Returns the body of an interaction as Slack sends it for a click on a button of the approval.
fn body(expired: &ExpiredApproval) -> Bytes {
    let ExpiredApproval { id, team, channel, thread_ts, message_ts, person, at, .. } = expired;
    let at = format!("{}.{:06}", at.unix_timestamp(), at.microsecond());
    let ts = message_ts.as_ref().or(thread_ts.as_ref()).unwrap_or(&at);
    let payload = json!({
        "type": "block_actions", "team": { "id": team.as_str() },
        "user": { "id": person, "team_id": team.as_str() }, "channel": { "id": channel.as_str() },
        "message": { "ts": ts, "thread_ts": thread_ts },
        "actions": [{
            "type": "button", "action_id": format!("{APPROVAL_ACTION_PREFIX}0"), "value": id,
            "action_ts": at,
        }],
    });
    let payload = payload.to_string();
    form_urlencoded::Serializer::new(String::new()).append_pair("payload", &payload).finish().into()
}
