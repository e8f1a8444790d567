//! Calls of Slack's Web API by a run, with waits for rate limits, the token and Slack.
//!
//! Called by `calls` and `lookup`. A token that Slack refused for good revokes the connection, as a
//! message of the outbox does.

use super::writer::{WriteError, Writer};
use crate::slack::{Action, ApiResult, Method};
use serde_json::Value;
use shared::{domain::ConnectionStatus, runtime::telemetry::ErrorChain, store::Connection};
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// Wait after a failure of the connection or its token.
const CONNECTION_WAIT: Duration = Duration::from_secs(5);
/// Wait after a call that was not sent.
const RETRY_WAIT: Duration = Duration::from_millis(500);
/// Maximum duration of a call with its waits, as of messages in the outbox.
const CALL_MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Reason of a dead letter whose answer Slack refused.
pub(super) const REFUSED: &str = "Slack refused the answer";
/// Reason of a dead letter whose answer could not be completed without a token.
pub(super) const REVOKED: &str = "the connection was revoked";

/// Result of a call, after waits for rate limits and the token.
pub(super) enum CallOutcome {
    Succeeded(Value),
    /// Refused, with Slack's error code.
    Refused(String),
    /// Sent with an unknown result, for a reason.
    Ambiguous(String),
}

impl Writer {
    /// Calls a method. Waits for rate limits and retries while the token or Slack is unavailable,
    /// up to [`CALL_MAX_AGE`].
    pub(super) async fn call(
        &self,
        method: Method,
        body: &Value,
    ) -> Result<CallOutcome, WriteError> {
        let clients = &self.context.clients;
        let id = self.delivery.key.connection;
        let began = Instant::now();
        loop {
            if began.elapsed() > CALL_MAX_AGE {
                return Err(refused(REFUSED, method.as_str(), "no call succeeded within a day"));
            }
            let connection = match clients.connections.connection(id).await {
                Ok(Some(connection)) if connection.status == ConnectionStatus::Revoked => {
                    return Err(refused(REVOKED, method.as_str(), "the connection is revoked"));
                }
                Ok(Some(connection)) => connection,
                Ok(None) => return Err(WriteError::Undeliverable("connection_deleted")),
                Err(error) => {
                    warn!(error = %ErrorChain(&error), "failed to load connection of run");
                    self.wait(RETRY_WAIT).await?;
                    continue;
                }
            };
            let is_stopped = connection.status == ConnectionStatus::Stopped;
            let Some(token) = connection.bot_token.as_ref().filter(|_| !is_stopped) else {
                self.wait(CONNECTION_WAIT).await?;
                continue;
            };
            let permit = match clients.slack.permit(id, method).await {
                Ok(permit) => permit,
                Err(wait) => {
                    self.wait(wait).await?;
                    continue;
                }
            };
            if !self.term.holds() {
                return Err(WriteError::Fenced);
            }
            let wait = match clients.slack.call(permit, token, body).await {
                ApiResult::Succeeded(answer) => return Ok(CallOutcome::Succeeded(answer)),
                ApiResult::Ambiguous(reason) => return Ok(CallOutcome::Ambiguous(reason)),
                ApiResult::Refused(Action::Reconcile, code) => {
                    return Ok(CallOutcome::Ambiguous(code));
                }
                ApiResult::RateLimited(wait) => wait,
                ApiResult::NotSent(_) => RETRY_WAIT,
                ApiResult::Refused(Action::Revoke, code) => {
                    if self.revoke(&connection, &code).await {
                        return Err(refused(REVOKED, method.as_str(), &code));
                    }
                    CONNECTION_WAIT
                }
                ApiResult::Refused(action, code) => {
                    match self.after_refusal(action, &connection).await {
                        Some(wait) => wait,
                        None => return Ok(CallOutcome::Refused(code)),
                    }
                }
            };
            self.wait(wait).await?;
        }
    }

    /// Revokes the connection whose token Slack refused. Returns false if it has another token by
    /// now, or if the change failed.
    async fn revoke(&self, connection: &Connection, code: &str) -> bool {
        let (id, version, store) = (connection.id, connection.version, &self.context.clients.store);
        let (status, reason) = (ConnectionStatus::Revoked, format!("Slack error: {code}"));
        match store.record_connection_failure(id, Some(version), status, &reason).await {
            Ok(changed) => {
                warn!(connection = %id, %status, code, changed, "connection refused by Slack");
                changed
            }
            Err(error) => {
                let error = ErrorChain(&error);
                warn!(connection = %id, %error, "failed to record refused connection");
                false
            }
        }
    }

    /// Returns the wait before a retry if the connection or token was refused, `None` if the call
    /// itself was refused.
    async fn after_refusal(&self, action: Action, connection: &Connection) -> Option<Duration> {
        let clients = &self.context.clients;
        match action {
            Action::RefreshToken => {
                let (id, version) = (connection.id, connection.version);
                if let Ok(true) = clients.store.request_token_refresh(id, version).await {
                    clients.token_expired.notify_one();
                    return Some(RETRY_WAIT);
                }
                Some(CONNECTION_WAIT)
            }
            // The outbox updates the state of the connection, after its next message.
            Action::Revoke
            | Action::ConfirmToken
            | Action::MarkMisconfigured
            | Action::ReloadToken
            | Action::Pause
            | Action::ReportBlockedAddress
            | Action::Wait
            | Action::PauseMessages => Some(CONNECTION_WAIT),
            Action::RefuseTeam
            | Action::ReportMissingScope
            | Action::RefuseConversation
            | Action::Reconcile
            | Action::Fail => None,
        }
    }

    async fn wait(&self, time: Duration) -> Result<(), WriteError> {
        tokio::time::sleep(time).await;
        if self.term.holds() { Ok(()) } else { Err(WriteError::Fenced) }
    }
}

/// Returns the error of an answer that Slack refuses.
pub(super) fn refused(reason: &'static str, method: &str, code: &str) -> WriteError {
    WriteError::Refused { reason, error: format!("{method}: {code}") }
}
