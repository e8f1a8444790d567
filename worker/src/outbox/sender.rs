//! Sends one message: to a response_url, or through the Web API with the connection's token.

use super::{SendShared, response_url, web_api};
use crate::{
    context::{Context, WorkerTerm},
    probe::Stage,
    slack::Reconciliation,
};
use shared::{
    domain::{ConnectionStatus, Destination},
    runtime::telemetry::ErrorChain,
    secrets::Secret,
    store::{Connection, OutboxMessage, SendAmbiguity, SendOutcome},
};
use std::{sync::Arc, time::Duration};
use tracing::warn;

/// Wait when the worker's row may have expired.
pub const NOT_HELD_WAIT: Duration = Duration::from_millis(250);
/// Reason of a message that waits because the worker's row may have expired.
pub const ROW_EXPIRED: &str = "the worker's row expired";
/// Maximum wait between two attempts.
const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// Wait for the token of a connection that is pending or stopped.
const PENDING_WAIT: Duration = Duration::from_secs(30);

/// Reason for which a call was not made.
#[derive(Debug)]
pub enum NotCalled {
    /// Rate limit, and the wait.
    RateLimited(Duration),
    /// The worker's row may have expired. Another worker decides about the message.
    RowExpired,
}

impl From<NotCalled> for SendOutcome {
    fn from(reason: NotCalled) -> Self {
        match reason {
            NotCalled::RateLimited(after) => Self::Untried(after, "rate limited".into()),
            NotCalled::RowExpired => Self::Untried(NOT_HELD_WAIT, ROW_EXPIRED.into()),
        }
    }
}

/// Message that is being sent.
#[derive(Clone, Copy)]
pub struct SendContext<'a> {
    pub shared: &'a SendShared,
    pub term: &'a WorkerTerm,
    pub message: &'a OutboxMessage,
}

pub struct AuthenticatedSender<'a> {
    pub sending: SendContext<'a>,
    pub connection: Arc<Connection>,
    pub token: Secret,
}

pub async fn send(
    shared: &SendShared,
    term: &WorkerTerm,
    message: &OutboxMessage,
    ambiguity: &mut SendAmbiguity,
) -> SendOutcome {
    let sending = SendContext { shared, term, message };
    let text = message.outgoing.message["text"].as_str().unwrap_or_default();
    sending.context().probe(Stage::Send, text.as_bytes());
    match &message.outgoing.to {
        Destination::ResponseUrl { url, fallback } => {
            response_url::send(sending, url, fallback.as_ref(), ambiguity).await
        }
        to => match sending.authenticate().await {
            Ok(sender) => {
                web_api::send(&sender, to, message.outgoing.message.clone(), ambiguity).await
            }
            Err(outcome) => outcome,
        },
    }
}

impl<'a> SendContext<'a> {
    pub fn context(self) -> &'a Context {
        &self.shared.context
    }

    /// Returns the sender with the connection's token. A final failure is confirmed in Postgres.
    pub async fn authenticate(self) -> Result<AuthenticatedSender<'a>, SendOutcome> {
        let connections = &self.context().connections;
        let later = |error| SendOutcome::Later(self.backoff(), ErrorChain(&error).to_string());
        let mut connection =
            connections.connection(self.message.connection).await.map_err(later)?;
        if final_failure(connection.as_deref()).is_some() {
            connection = connections.read_through(self.message.connection).await.map_err(later)?;
        }
        if let Some(reason) = final_failure(connection.as_deref()) {
            return Err(SendOutcome::Failed(reason));
        }
        let token = connection.as_ref().and_then(|connection| connection.bot_token.clone());
        match connection.zip(token) {
            Some((connection, token)) if connection.status != ConnectionStatus::Stopped => {
                Ok(AuthenticatedSender { sending: self, connection, token })
            }
            _ => {
                let reason = "the connection is pending or stopped".to_owned();
                Err(SendOutcome::Untried(PENDING_WAIT, reason))
            }
        }
    }

    /// Checks the worker's row. Must be the last step before a call, so that nothing delays the
    /// call after the check.
    pub fn check_lease(self) -> Result<(), NotCalled> {
        self.term.holds().then_some(()).ok_or(NotCalled::RowExpired)
    }

    /// Records that an ambiguous message is sent again without a look-up.
    pub fn mark_resent(self, ambiguity: &mut SendAmbiguity) {
        if ambiguity.open {
            let to = self.message.outgoing.to.as_str();
            warn!(outbox = self.message.id, to, "resending ambiguous message");
            self.context().slack.metrics.record_reconciliation(to, Reconciliation::Resent);
            *ambiguity = SendAmbiguity { open: false, resent: true };
        }
    }

    /// Returns the wait before the next attempt.
    pub fn backoff(self) -> Duration {
        let attempt = self.message.attempts.clamp(1, 11).unsigned_abs() - 1;
        Duration::from_millis(500 << attempt).min(BACKOFF_MAX)
    }
}

/// Returns the reason for which no message of a connection can be sent, if there is one.
fn final_failure(connection: Option<&Connection>) -> Option<String> {
    let Some(connection) = connection else { return Some("the connection does not exist".into()) };
    match connection.status {
        ConnectionStatus::Revoked => Some("the connection is revoked".into()),
        ConnectionStatus::Pending | ConnectionStatus::Stopped => None,
        ConnectionStatus::Active | ConnectionStatus::Error if connection.bot_token.is_none() => {
            Some("the connection has no bot token".into())
        }
        ConnectionStatus::Active | ConnectionStatus::Error => None,
    }
}
