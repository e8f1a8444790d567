//! Calls of agents: converts webhooks to requests, and responses to messages for Slack.

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
pub use message::{AskOutcome, Run, ask, content, control_outcome};
pub use message_policy::AnswerPolicy;
pub use sync_response::relay;
pub use views::{answer_view, failure_notice, failure_response};

use bytes::Bytes;
use shared::{domain::OutgoingMessage, store::Change};

/// Result of an attempt that succeeded.
pub struct Completion {
    /// Outcome to record for the delivery.
    pub outcome: &'static str,
    pub messages: Vec<OutgoingMessage>,
    /// Sync response, and the messages to send instead if Slack's request has ended.
    pub response: Option<(Bytes, Vec<OutgoingMessage>)>,
    /// Change of the conversation: a new session, or an approval.
    pub change: Option<Change>,
    /// True if the agent answered: a success for its circuit breaker.
    pub reached: bool,
}

impl Completion {
    /// Returns a completion without messages.
    pub fn new(outcome: &'static str) -> Self {
        Self { outcome, messages: Vec::new(), response: None, change: None, reached: true }
    }

    /// Returns a completion for which the agent did not answer.
    pub fn unreached(outcome: &'static str, messages: Vec<OutgoingMessage>) -> Self {
        Self { reached: false, ..Self::with_messages(outcome, messages) }
    }

    /// Returns a completion with messages to send to Slack.
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
