//! Sends notifications to the operator's backend.
//!
//! Notifications of one connection are sent in order, those of different connections concurrently.
//! A failed notification is retried until its event is too old, and delays later ones of its
//! connection. The answer to `connection.installed` may refuse the connection, which is then
//! stopped.

use crate::context::Context;
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use serde_json::json;
use shared::{
    runtime::telemetry::ErrorChain,
    store::{DueNotification, NotificationEndpoint, StoreError},
};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// Interval of looking for due notifications.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Interval at which waiting notifications are counted.
const COUNT_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum number of connections per query.
const PAGE: i64 = 256;
/// Maximum number of concurrent calls.
const CONCURRENT: usize = 16;
/// Time after which another worker may send the same notification; longer than a page of calls.
const LEASE: Duration = Duration::from_secs(60);
const _: () = assert!(CALLS_MAX.div_ceil(CONCURRENT) as u64 * TIMEOUT.as_secs() < 60);
/// Maximum number of calls per claim.
const CALLS_MAX: usize = 64;
/// Wait after the first failure. Each further failure doubles it.
const BACKOFF: Duration = Duration::from_secs(5);
/// Maximum wait after a failure.
const BACKOFF_MAX: Duration = Duration::from_secs(3600);
/// Timeout of a call.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Age of an event after which its notification is given up on.
const KEEP_FOR: Duration = Duration::from_secs(72 * 3600);
/// Maximum characters of the backend's reason to refuse a connection.
const REASON_CHARS: usize = 200;
/// Event whose answer may refuse the connection.
const INSTALLED: &str = "connection.installed";

/// Sends notifications until cancelled.
pub async fn run(context: &Context, until: CancellationToken) {
    let sending = async {
        let mut counted: Option<Instant> = None;
        loop {
            if let Err(error) = send_due(context).await {
                warn!(error = %ErrorChain(&error), "failed to query notifications");
            }
            if counted.is_none_or(|at| at.elapsed() >= COUNT_INTERVAL) {
                counted = Some(Instant::now());
                match context.store.notification_stats().await {
                    Ok(stats) => context.metrics.record_notifications(&stats),
                    Err(error) => {
                        warn!(error = %ErrorChain(&error), "failed to count notifications");
                    }
                }
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    };
    until.run_until_cancelled(sending).await;
}

/// Sends the due notifications of all connections.
async fn send_due(context: &Context) -> Result<(), StoreError> {
    let mut after = String::new();
    loop {
        let heads = context.store.notification_heads(&after, PAGE).await?;
        let Some(last) = heads.last() else { return Ok(()) };
        after.clone_from(&last.connection);
        let is_full = heads.len() as i64 == PAGE;
        let due: Vec<i64> = heads.iter().filter(|head| head.is_due).map(|head| head.id).collect();
        for ids in due.chunks(CALLS_MAX) {
            // Without an endpoint, the waiting notifications were deleted.
            let Some(endpoint) = context.store.notification_endpoint().await? else {
                return Ok(());
            };
            let claimed = context.store.claim_notifications(ids, LEASE).await?;
            stream::iter(claimed)
                .for_each_concurrent(CONCURRENT, async |due| {
                    if let Err(error) = send(context, &endpoint, &due).await {
                        let (id, error) = (due.id, ErrorChain(&error));
                        warn!(id, %error, "failed to record result of notification");
                    }
                })
                .await;
        }
        if !is_full {
            return Ok(());
        }
    }
}

async fn send(
    context: &Context,
    endpoint: &NotificationEndpoint,
    due: &DueNotification,
) -> Result<(), StoreError> {
    let id = format!("ntf-{}", due.id);
    let sent = context.agents.notify(endpoint, &id, body(due), TIMEOUT).await;
    let (event, connection) = (due.event.as_str(), due.connection.as_str());
    let reason = match sent {
        Ok(answer) => {
            if let Some(reason) = refusal(event, &answer)
                && context.store.veto_connection(due, &reason).await?
            {
                info!(connection, reason, "connection refused by the backend");
            }
            context.metrics.count_notification("sent");
            return context.store.record_notified(due.id).await;
        }
        Err(reason) => reason,
    };
    let after = backoff(due.attempts);
    let given_up = context.store.record_notification_failure(due, &reason, after, KEEP_FOR).await?;
    if given_up {
        context.metrics.count_notification("given_up");
        error!(id, event, connection, reason, "notification given up");
    } else {
        context.metrics.count_notification("failed");
        warn!(id, event, connection, reason, ?after, "failed to send notification");
    }
    Ok(())
}

/// Returns the body of a notification.
fn body(due: &DueNotification) -> Vec<u8> {
    let mut data = json!({
        "connection": due.connection, "organization": due.organization, "app": due.app,
        "enterprise": due.enterprise, "team": due.team,
    });
    let details = due.data.as_object().into_iter().flatten();
    for (name, value) in details.filter(|(_, value)| !value.is_null()) {
        data[name] = value.clone();
    }
    json!({ "type": due.event, "timestamp": due.at, "data": data }).to_string().into_bytes()
}

/// Returns the backend's reason to refuse a connection, or `None` if it accepts.
fn refusal(event: &str, answer: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        accept: bool,
        #[serde(default)]
        reason: String,
    }
    let answer = Some(answer).filter(|_| event == INSTALLED)?;
    let answer: Answer = serde_json::from_slice(answer).ok()?;
    let reason = answer.reason.chars().filter(|c| !c.is_control()).take(REASON_CHARS);
    let reason: String = reason.collect();
    (!answer.accept).then(|| format!("refused by the backend: {reason}"))
}

fn backoff(attempts: i32) -> Duration {
    let doublings = attempts.saturating_sub(1).clamp(0, 16).unsigned_abs();
    (BACKOFF * 2_u32.pow(doublings)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_only_installations() {
        let no = br#"{"accept":false,"reason":"unpaid\n"}"#;
        assert_eq!(refusal(INSTALLED, no).as_deref(), Some("refused by the backend: unpaid"));
        assert_eq!(refusal("link_code.used", no), None);
        for yes in [&b""[..], b"ok", b"{}", br#"{"accept":true}"#, br#"{"accept":"no"}"#] {
            assert_eq!(refusal(INSTALLED, yes), None);
        }
    }

    #[test]
    fn waits_at_most_an_hour() {
        let waits = [1, 2, 3, 10, 11, i32::MAX].map(|attempts| backoff(attempts).as_secs());
        assert_eq!(waits, [5, 10, 20, 2560, 3600, 3600]);
    }
}
