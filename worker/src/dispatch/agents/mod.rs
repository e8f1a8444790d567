//! Converts webhooks to calls of agents, and replies to messages for Slack.

mod approvals;
mod forward;
#[cfg(test)]
mod fuzz;
mod late_view_response;
mod message;
mod message_policy;
mod sync_response;
mod views;

pub use approvals::{AskPlace, ask_change};
pub use forward::forward;
pub use message::{Asked, Run, ask, content, unwanted};
pub use message_policy::AnswerPolicy;
pub use sync_response::relay;
pub use views::{answer_view, failure_notice, failure_response};

use bytes::Bytes;
use shared::{domain::OutgoingMessage, store::Change};

/// Result of an attempt that succeeded.
pub struct Completion {
    /// Outcome for the record of the delivery.
    pub outcome: &'static str,
    pub messages: Vec<OutgoingMessage>,
    /// Sync response, and the messages that replace it if Slack no longer waits.
    pub response: Option<(Bytes, Vec<OutgoingMessage>)>,
    pub change: Option<Change>,
    pub reached: bool,
}

impl Completion {
    /// Returns a completion without messages.
    pub fn new(outcome: &'static str) -> Self {
        Self { outcome, messages: Vec::new(), response: None, change: None, reached: true }
    }

    /// Returns a completion without an answer of the agent.
    pub fn unreached(outcome: &'static str, messages: Vec<OutgoingMessage>) -> Self {
        Self { reached: false, ..Self::with_messages(outcome, messages) }
    }

    pub fn with_messages(outcome: &'static str, messages: Vec<OutgoingMessage>) -> Self {
        Self { messages, ..Self::new(outcome) }
    }

    /// Returns a completion with a sync response.
    pub fn with_response(
        outcome: &'static str,
        response: impl Into<Bytes>,
        late: Vec<OutgoingMessage>,
    ) -> Self {
        Self { response: Some((response.into(), late)), ..Self::new(outcome) }
    }
}
