//! Handler that a team runs in place of agents, behind the same queue and limits.

use bytes::Bytes;
use shared::{domain::OutgoingMessage, slack::InboundPayload, store::Connection, stream::Envelope};
use std::{pin::Pin, sync::Arc, time::Duration};

/// Limits of the team's own handler.
#[derive(Debug, Clone, Copy)]
pub struct HandlerSettings {
    /// Maximum number of deliveries that run, of all workers.
    pub max_concurrent: usize,
    /// Maximum duration of one delivery.
    pub timeout: Duration,
}

/// Outcome of a handler.
pub enum HandlerOutcome {
    /// The webhook is handled.
    Completed {
        /// Messages to send to Slack.
        messages: Vec<OutgoingMessage>,
        /// The sync response, and the messages that replace it if Slack no longer waits.
        response: Option<(Bytes, Vec<OutgoingMessage>)>,
    },
    /// A dependency of the handler is unavailable: retry later.
    Retry {
        /// The unavailable dependency.
        cause: String,
    },
    /// The handler failed on this webhook: retry a few times.
    Failed {
        /// Description of the failure.
        error: String,
    },
    /// The webhook can never be handled: move it to the dead letters.
    DeadLetter {
        /// Reason, the same text for all webhooks of its kind.
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
    /// instead if Slack no longer waits.
    pub fn respond(response: Bytes, late: Vec<OutgoingMessage>) -> Self {
        Self::Completed { messages: Vec::new(), response: Some((response, late)) }
    }
}

/// Webhook and connection that a handler gets.
pub struct HandlerContext<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) envelope: &'a Envelope,
}

impl HandlerContext<'_> {
    /// Returns the id of the webhook, the same for every repetition: the key for idempotency.
    pub fn id(&self) -> &str {
        self.envelope.dedup_key.as_str()
    }

    /// Returns the connection: organization, tokens and settings.
    pub fn connection(&self) -> &Connection {
        self.connection
    }

    /// Returns the webhook as stored: kind, times, and the bytes that Slack signed.
    pub fn envelope(&self) -> &Envelope {
        self.envelope
    }
}

/// Handler of webhooks in place of agents.
///
/// Called for all webhooks but installation events and Tidegate's commands, one at a time per
/// conversation and in order of acceptance. May be called again for the same webhook, after a crash
/// or a retry; the returned outcome has its effects once.
pub trait Handler: Send + Sync + 'static {
    /// Handles a webhook. `inbound` is its body as far as Tidegate parses it.
    fn handle(
        &self,
        context: &HandlerContext<'_>,
        inbound: &InboundPayload<'_>,
    ) -> impl Future<Output = HandlerOutcome> + Send;
}

/// Placeholder type for a worker without a handler.
pub struct NoHandler;

impl Handler for NoHandler {
    async fn handle(&self, _: &HandlerContext<'_>, _: &InboundPayload<'_>) -> HandlerOutcome {
        HandlerOutcome::completed()
    }
}

type HandlerFuture<'a> = Pin<Box<dyn Future<Output = HandlerOutcome> + Send + 'a>>;

/// Handler of any type. Cheap to clone.
pub type AnyHandler = Arc<dyn DynHandler>;

/// [`Handler`] as a trait object.
pub trait DynHandler: Send + Sync {
    /// Handles a webhook.
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
