//! Applies Slack's answers about a token to its connection: refused, expired, working again.

use super::{sender::AuthenticatedSender, web_api::LONG_WAIT};
use crate::slack::{Action, ApiResult, Method};
use serde_json::json;
use shared::{
    domain::{ConnectionId, ConnectionStatus},
    runtime::telemetry::ErrorChain,
    store::SendOutcome,
};
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};
use tracing::warn;

/// Number of refusals in a row, each confirmed by `auth.test`, that set a connection to `error`.
const FAILURES_MAX: i32 = 3;
/// Maximum number of connections in memory. At the limit all are dropped.
const CONNECTIONS_MAX: usize = 10_000;

/// Connections whose token was refused recently. A success of any other connection needs no query.
#[derive(Debug, Clone, Default)]
pub struct TokenFailures(Arc<Mutex<HashSet<ConnectionId>>>);

impl TokenFailures {
    fn record(&self, connection: ConnectionId) {
        let mut refused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= CONNECTIONS_MAX {
            refused.clear();
        }
        refused.insert(connection);
    }

    fn remove(&self, connection: ConnectionId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&connection)
    }
}

/// Wakes the token refresh for an expired token.
pub async fn refresh(sender: &AuthenticatedSender<'_>, text: String) -> SendOutcome {
    let (context, wait) = (sender.sending.context(), sender.sending.backoff());
    match context.store.request_token_refresh(sender.connection.id, sender.connection.version).await
    {
        Ok(true) => {
            context.token_expired.notify_one();
            SendOutcome::Later(wait, text)
        }
        Ok(false) => {
            record_refusal(sender, ConnectionStatus::Error, &text).await;
            SendOutcome::Later(LONG_WAIT, text)
        }
        Err(error) => SendOutcome::Later(wait, ErrorChain(&error).to_string()),
    }
}

/// Asks `auth.test` whether a token is invalid or this address is blocked.
pub async fn confirm(sender: &AuthenticatedSender<'_>, text: String) -> SendOutcome {
    let is_refused = match sender.call(Method::AuthTest, &json!({})).await {
        Ok(ApiResult::Refused(action, text)) => match action {
            Action::Revoke => {
                record_refusal(sender, ConnectionStatus::Revoked, &text).await;
                return SendOutcome::Failed(text);
            }
            other => other == Action::ConfirmToken,
        },
        _ => false,
    };
    if is_refused {
        let (id, version) = (sender.connection.id, sender.connection.version);
        sender.sending.shared.token_failures.record(id);
        match sender.sending.context().store.count_token_rejection(id, version).await {
            Ok(count) if count >= FAILURES_MAX => {
                record_refusal(sender, ConnectionStatus::Error, &text).await
            }
            Ok(_) => {}
            Err(error) => {
                warn!(
                    connection = %id, error = %ErrorChain(&error), "failed to count token failure"
                );
            }
        }
    }
    SendOutcome::Later(sender.sending.backoff(), text)
}

/// Changes the status of a connection that Slack refused.
pub async fn record_refusal(
    sender: &AuthenticatedSender<'_>,
    status: ConnectionStatus,
    code: &str,
) {
    let (id, version) = (sender.connection.id, sender.connection.version);
    let (store, reason) = (&sender.sending.context().store, format!("Slack error: {code}"));
    match store.record_connection_failure(id, Some(version), status, &reason).await {
        Ok(changed) => {
            warn!(connection = %id, %status, code, changed, "connection refused by Slack");
        }
        Err(error) => {
            warn!(
                connection = %id, error = %ErrorChain(&error), "failed to record refused connection"
            );
        }
    }
}

/// Clears the failures of a token that works.
pub async fn record_success(sender: &AuthenticatedSender<'_>) {
    let (id, version) = (sender.connection.id, sender.connection.version);
    let was_refused = sender.sending.shared.token_failures.remove(id);
    if (was_refused || sender.connection.status == ConnectionStatus::Error)
        && let Err(error) =
            sender.sending.context().store.record_connection_success(id, version).await
    {
        warn!(connection = %id, error = %ErrorChain(&error), "failed to record working token");
    }
}
