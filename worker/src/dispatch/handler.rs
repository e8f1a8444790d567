//! Interface of a team's own handler: Rust code that handles webhooks in place of agents.

use bytes::Bytes;
use shared::{domain::OutgoingMessage, slack::InboundPayload, store::Connection, stream::Envelope};
use std::{pin::Pin, sync::Arc, time::Duration};

/// Limits of a team's own handler.
#[derive(Debug, Clone, Copy)]
pub struct HandlerSettings {
    /// Maximum number of concurrent attempts, on all workers together.
    pub max_concurrent: usize,
    /// Maximum duration of one attempt.
    pub timeout: Duration,
}

/// Outcome of one attempt of a handler.
pub enum HandlerOutcome {
    /// The webhook is handled.
    Completed {
        /// Messages to send to Slack.
        messages: Vec<OutgoingMessage>,
        /// Sync response, and the messages to send instead if Slack's request has ended.
        response: Option<(Bytes, Vec<OutgoingMessage>)>,
    },
    /// A dependency of the handler is unavailable. Retried with backoff for 24 hours.
    Retry {
        /// The unavailable dependency.
        cause: String,
    },
    /// The handler failed on this webhook. Becomes a dead letter after 10 failures.
    Failed {
        /// Description of the failure.
        error: String,
    },
    /// The webhook can never be handled. Becomes a dead letter at once.
    DeadLetter {
        /// Reason: a constant text, by which dead letters are grouped.
        reason: String,
        /// Details of this webhook.
        error: String,
    },
}

impl HandlerOutcome {
    /// Returns the outcome without messages.
    pub fn completed() -> Self {
        Self::send(Vec::new())
    }

    /// Returns the outcome that sends messages.
    pub fn send(messages: Vec<OutgoingMessage>) -> Self {
        Self::Completed { messages, response: None }
    }

    /// Returns the outcome with a sync response: the content of a view or a menu. `late` is sent
    /// instead if Slack's request has ended.
    pub fn respond(response: Bytes, late: Vec<OutgoingMessage>) -> Self {
        Self::Completed { messages: Vec::new(), response: Some((response, late)) }
    }
}

/// Webhook and connection passed to a handler.
pub struct HandlerContext<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) envelope: &'a Envelope,
}

impl HandlerContext<'_> {
    /// Returns the id of the webhook, equal in all attempts. Use it as the idempotency key.
    pub fn id(&self) -> &str {
        self.envelope.dedup_key.as_str()
    }

    /// Returns the connection: organization, tokens and settings.
    pub fn connection(&self) -> &Connection {
        self.connection
    }

    /// Returns the webhook as stored: kind, times, and the body that Slack signed.
    pub fn envelope(&self) -> &Envelope {
        self.envelope
    }
}

/// Handler of webhooks in place of agents.
///
/// Called for all webhooks except installation events and Tidegate's commands, one at a time per
/// conversation and in order of acceptance. May be called again for the same webhook, after a crash
/// or for a retry. The effects of its outcome are committed once.
pub trait Handler: Send + Sync + 'static {
    /// Handles a webhook. `inbound` is its body as far as Tidegate parses it.
    fn handle(
        &self,
        context: &HandlerContext<'_>,
        inbound: &InboundPayload<'_>,
    ) -> impl Future<Output = HandlerOutcome> + Send;
}

/// Handler type of a worker without an own handler. Never called.
pub struct NoHandler;

impl Handler for NoHandler {
    async fn handle(&self, _: &HandlerContext<'_>, _: &InboundPayload<'_>) -> HandlerOutcome {
        HandlerOutcome::completed()
    }
}

type HandlerFuture<'a> = Pin<Box<dyn Future<Output = HandlerOutcome> + Send + 'a>>;

/// Shared trait object of a handler. Cheap to clone.
pub type AnyHandler = Arc<dyn DynHandler>;

/// Object-safe form of [`Handler`].
pub trait DynHandler: Send + Sync {
    /// Handles a webhook, see [`Handler::handle`].
    fn handle<'a>(
        &'a self,
        context: &'a HandlerContext<'a>,
        inbound: &'a InboundPayload<'a>,
    ) -> HandlerFuture<'a>;
}

impl<H: Handler> DynHandler for H {
    fn handle<'a>(
        &'a self,
        context: &'a HandlerContext<'a>,
        inbound: &'a InboundPayload<'a>,
    ) -> HandlerFuture<'a> {
        Box::pin(Handler::handle(self, context, inbound))
    }
}
