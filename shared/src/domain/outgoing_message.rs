//! Messages to Slack: the decrypted request of an outbox row.

use super::{ChannelId, UserId};
use serde::{Deserialize, Serialize};

/// Prefix of the action ids of approval buttons. The number of the button follows.
pub const APPROVAL_ACTION_PREFIX: &str = "tidegate_approval_";

/// Message to Slack.
#[derive(Clone, Serialize, Deserialize)]
pub struct OutgoingMessage {
    /// Destination of the message.
    pub to: Destination,
    /// Slack message object (`text`, `blocks`, …), or the view.
    pub message: serde_json::Value,
}

/// Slack API method and its address.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum Destination {
    /// `response_url` of a command or click: at most 5 uses within 30 minutes.
    ResponseUrl {
        /// URL. A secret: it authorizes its holder to post.
        url: String,
        /// Recipient of a message by the Web API once the URL is used up.
        #[serde(default)]
        fallback: Option<Fallback>,
    },
    /// `chat.postMessage`.
    PostMessage {
        /// Conversation.
        channel: ChannelId,
        /// Thread, if any.
        thread_ts: Option<String>,
    },
    /// `chat.postEphemeral`: visible to one person.
    PostEphemeral {
        /// Conversation.
        channel: ChannelId,
        /// Person who sees the message.
        user: UserId,
        /// Thread, if any.
        thread_ts: Option<String>,
    },
    /// `chat.update`: replaces a message of the app.
    UpdateMessage {
        /// Conversation.
        channel: ChannelId,
        /// Timestamp of the message.
        ts: String,
    },
    /// `conversations.open`, then `chat.postMessage` there.
    DirectMessage {
        /// Recipient.
        user: UserId,
    },
    /// `views.open`: the message is the view. A trigger id is valid for 3 s.
    OpenView {
        /// Trigger id of a command or click.
        trigger_id: String,
    },
    /// `views.update`: the message is the view.
    UpdateView {
        /// Id of the view.
        view_id: String,
    },
    /// `views.publish`: the message is the view of a person's App Home.
    PublishView {
        /// Owner of the App Home.
        user: UserId,
    },
}

/// Person in a conversation.
#[derive(Clone, Serialize, Deserialize)]
pub struct Fallback {
    /// Conversation.
    pub channel: ChannelId,
    /// Person.
    pub user: UserId,
}

impl Destination {
    /// Returns the destination for a `response_url`, with the person as fallback.
    pub fn response_url(url: impl Into<String>, channel: ChannelId, user: UserId) -> Self {
        let fallback = Some(Fallback { channel, user });
        Destination::ResponseUrl { url: url.into(), fallback }
    }

    /// Returns the Slack method for logs, metrics and rate limits. Never contains the address.
    pub fn as_str(&self) -> &'static str {
        match self {
            Destination::ResponseUrl { .. } => "response_url",
            Destination::PostMessage { .. } | Destination::DirectMessage { .. } => {
                "chat.postMessage"
            }
            Destination::PostEphemeral { .. } => "chat.postEphemeral",
            Destination::UpdateMessage { .. } => "chat.update",
            Destination::OpenView { .. } => "views.open",
            Destination::UpdateView { .. } => "views.update",
            Destination::PublishView { .. } => "views.publish",
        }
    }
}

impl std::fmt::Debug for OutgoingMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "OutgoingMessage({})", self.to.as_str())
    }
}
