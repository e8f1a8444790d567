//! What each kind of webhook asks of an agent, and what Slack is told for its answer.

mod forward;
mod late_view_response;
mod message;
mod sync_response;
mod views;

pub use forward::forward;
pub use message::ask;
pub use sync_response::relay;
pub use views::{answer_view, given_up};

use bytes::Bytes;
use shared::{store::Change, types::Outgoing};

/// An attempt that succeeded.
pub struct Completion {
    /// The word for the log of deliveries.
    pub outcome: &'static str,
    /// What Slack is to be told.
    pub messages: Vec<Outgoing>,
    /// The response in Slack's own HTTP request, and the messages that replace it when the request is over.
    pub response: Option<(Bytes, Vec<Outgoing>)>,
    /// A change of the conversation.
    pub change: Option<Change>,
    /// Whether the agent answered.
    pub reached: bool,
}

impl Completion {
    /// Without a message.
    pub fn new(outcome: &'static str) -> Self {
        Self { outcome, messages: Vec::new(), response: None, change: None, reached: true }
    }

    /// Over, although the agent was not asked, or did not answer.
    pub fn unreached(outcome: &'static str, messages: Vec<Outgoing>) -> Self {
        Self { reached: false, ..Self::with(outcome, messages) }
    }

    /// With messages.
    pub fn with(outcome: &'static str, messages: Vec<Outgoing>) -> Self {
        Self { messages, ..Self::new(outcome) }
    }

    /// With a response in Slack's own HTTP request.
    pub fn respond(outcome: &'static str, response: impl Into<Bytes>, late: Vec<Outgoing>) -> Self {
        Self { response: Some((response.into(), late)), ..Self::new(outcome) }
    }
}
