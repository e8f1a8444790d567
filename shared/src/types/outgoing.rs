//! What Slack is to be told: a row of the outbox, in clear.

use super::ChannelId;
use serde::{Deserialize, Serialize};

/// One thing to say.
#[derive(Clone, Serialize, Deserialize)]
pub struct Outgoing {
    /// Where.
    pub to: Destination,
    /// What: a Slack message object (`text`, `blocks`, …).
    pub message: serde_json::Value,
}

/// Where something is said.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Destination {
    /// The `response_url` of a command or click: at most 5 uses within 30 minutes.
    ResponseUrl {
        /// A secret: whoever has it may speak there.
        url: String,
    },
    /// `chat.postMessage`.
    PostMessage {
        /// The conversation.
        channel: ChannelId,
        /// The thread, if it goes into one.
        thread_ts: Option<String>,
    },
    /// `views.update`: the message is the view.
    UpdateView {
        /// The view.
        view_id: String,
    },
}

impl Destination {
    /// The word for logs: never the address.
    pub fn as_str(&self) -> &'static str {
        match self {
            Destination::ResponseUrl { .. } => "response_url",
            Destination::PostMessage { .. } => "chat.postMessage",
            Destination::UpdateView { .. } => "views.update",
        }
    }
}

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outgoing({})", self.to.as_str())
    }
}
