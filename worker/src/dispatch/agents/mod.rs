//! Converts webhooks to calls of agents, and replies to messages for Slack.

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

/// Result of an attempt that succeeded.
pub struct Completion {
    /// Outcome for the record of the delivery.
    pub outcome: &'static str,
    pub messages: Vec<Outgoing>,
    /// Sync response, and the messages that replace it if Slack no longer waits.
    pub response: Option<(Bytes, Vec<Outgoing>)>,
    pub change: Option<Change>,
    pub reached: bool,
}

impl Completion {
    /// Returns a completion without messages.
    pub fn new(outcome: &'static str) -> Self {
        Self { outcome, messages: Vec::new(), response: None, change: None, reached: true }
    }

    /// Returns a completion without an answer of the agent.
    pub fn unreached(outcome: &'static str, messages: Vec<Outgoing>) -> Self {
        Self { reached: false, ..Self::with(outcome, messages) }
    }

    pub fn with(outcome: &'static str, messages: Vec<Outgoing>) -> Self {
        Self { messages, ..Self::new(outcome) }
    }

    /// Returns a completion with a sync response.
    pub fn respond(outcome: &'static str, response: impl Into<Bytes>, late: Vec<Outgoing>) -> Self {
        Self { response: Some((response.into(), late)), ..Self::new(outcome) }
    }
}
