//! A team's own code in place of agents, behind the same queue and limits.

use bytes::Bytes;
use shared::{
    codec::{envelope::Envelope, slack::Inbound},
    store::Connection,
    types::Outgoing,
};
use std::{pin::Pin, sync::Arc};

/// How a handler ended. A closed set.
pub enum HandlerOutcome {
    /// Handled.
    Done {
        /// What Slack is to be told.
        messages: Vec<Outgoing>,
        /// The response in Slack's own HTTP request, and the messages that replace it when the request is over.
        response: Option<(Bytes, Vec<Outgoing>)>,
    },
    /// Something that the handler needs is away: it is called again later.
    Retry {
        /// What is away.
        cause: String,
    },
    /// This webhook failed, and may fail again: it is called again later, a few times.
    Fail {
        /// What failed.
        error: String,
    },
    /// It can never work: an operator decides.
    DeadLetter {
        /// Why, the same words for all of its sort.
        reason: String,
        /// What is particular about this one.
        error: String,
    },
}

impl HandlerOutcome {
    /// Handled, without a message.
    pub fn done() -> Self {
        Self::send(Vec::new())
    }

    /// Handled, and these messages are sent.
    pub fn send(messages: Vec<Outgoing>) -> Self {
        Self::Done { messages, response: None }
    }

    /// Handled, and this is the response in Slack's own HTTP request: what a view shows, what a menu offers. When the request
    /// is over, `late` is sent instead.
    pub fn respond(response: Bytes, late: Vec<Outgoing>) -> Self {
        Self::Done { messages: Vec::new(), response: Some((response, late)) }
    }
}

/// A webhook with what a handler works with.
pub struct HandlerContext<'a> {
    pub(crate) connection: &'a Connection,
    pub(crate) envelope: &'a Envelope,
}

impl HandlerContext<'_> {
    /// The same however often this webhook comes to a handler, and no other's: recognize a repeat by it.
    pub fn id(&self) -> &str {
        self.envelope.dedupe.as_str()
    }

    /// The connection: its organization, tokens and settings.
    pub fn connection(&self) -> &Connection {
        self.connection
    }

    /// The webhook as it was stored: its kind, its times, the bytes that Slack signed.
    pub fn envelope(&self) -> &Envelope {
        self.envelope
    }
}

/// Handles webhooks in place of agents.
///
/// Called for every webhook that is none of Tidegate's own business, one at a time per conversation, in the order in which
/// they were accepted. It may be called again for the same webhook, after a crash or when it asked for that; what it returns
/// is in force once.
pub trait Handler: Send + Sync + 'static {
    /// Handles a webhook. `inbound` is its body as far as Tidegate reads it.
    fn handle(
        &self,
        context: &HandlerContext<'_>,
        inbound: &Inbound<'_>,
    ) -> impl Future<Output = HandlerOutcome> + Send;

    /// Called as part of the decision of each webhook. Tests panic here, or end the process: no webhook is known that does.
    #[doc(hidden)]
    fn on_decision(&self, _inbound: &Inbound<'_>) {}
}

/// No handler: webhooks go to agents.
pub struct NoHandler;

impl Handler for NoHandler {
    async fn handle(&self, _: &HandlerContext<'_>, _: &Inbound<'_>) -> HandlerOutcome {
        HandlerOutcome::done()
    }
}

type Handling<'a> = Pin<Box<dyn Future<Output = HandlerOutcome> + Send + 'a>>;

/// [`Handler`], callable without its type.
trait Erased: Send + Sync {
    fn handle<'a>(
        &'a self,
        context: &'a HandlerContext<'a>,
        inbound: &'a Inbound<'a>,
    ) -> Handling<'a>;

    fn on_decision(&self, inbound: &Inbound<'_>);
}

impl<H: Handler> Erased for H {
    fn handle<'a>(
        &'a self,
        context: &'a HandlerContext<'a>,
        inbound: &'a Inbound<'a>,
    ) -> Handling<'a> {
        Box::pin(Handler::handle(self, context, inbound))
    }

    fn on_decision(&self, inbound: &Inbound<'_>) {
        Handler::on_decision(self, inbound);
    }
}

/// A handler of whatever type. Cheap to clone.
#[derive(Clone)]
pub struct AnyHandler(Arc<dyn Erased>);

impl AnyHandler {
    /// Hides the type of a handler.
    pub fn new(handler: impl Handler) -> Self {
        Self(Arc::new(handler))
    }

    /// Handles a webhook.
    pub async fn handle(
        &self,
        context: &HandlerContext<'_>,
        inbound: &Inbound<'_>,
    ) -> HandlerOutcome {
        self.0.handle(context, inbound).await
    }

    /// See [`Handler::on_decision`].
    pub fn on_decision(&self, inbound: &Inbound<'_>) {
        self.0.on_decision(inbound);
    }
}
