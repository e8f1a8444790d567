//! What Slack is to be told: a row of the outbox, in clear.

use super::{ChannelId, UserId};
use serde::{Deserialize, Serialize};

/// One thing to say.
#[derive(Clone, Serialize, Deserialize)]
pub struct Outgoing {
    /// Where.
    pub to: Destination,
    /// What: a Slack message object (`text`, `blocks`, …), or the view.
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
        /// Who is told by the Web API instead, once it is used up.
        #[serde(default)]
        fallback: Option<Fallback>,
    },
    /// `chat.postMessage`.
    PostMessage {
        /// The conversation.
        channel: ChannelId,
        /// The thread, if it goes into one.
        thread_ts: Option<String>,
    },
    /// `chat.postEphemeral`: only this person sees it.
    PostEphemeral {
        /// The conversation.
        channel: ChannelId,
        /// Who.
        user: UserId,
        /// The thread, if it goes into one.
        thread_ts: Option<String>,
    },
    /// `chat.update`: a message of ours says something else.
    UpdateMessage {
        /// The conversation.
        channel: ChannelId,
        /// The message.
        ts: String,
    },
    /// `conversations.open`, and a message there.
    DirectMessage {
        /// To whom.
        user: UserId,
    },
    /// `views.open`: the message is the view. A trigger is good for 3 s.
    OpenView {
        /// Slack's permission, out of a command or a click.
        trigger_id: String,
    },
    /// `views.update`: the message is the view.
    UpdateView {
        /// The view.
        view_id: String,
    },
    /// `views.publish`: the message is the view of somebody's App Home.
    PublishView {
        /// Whose.
        user: UserId,
    },
}

/// A person in a conversation.
#[derive(Clone, Serialize, Deserialize)]
pub struct Fallback {
    /// The conversation.
    pub channel: ChannelId,
    /// The person.
    pub user: UserId,
}

impl Destination {
    /// The `response_url` of somebody who may be told another way.
    pub fn response_url(url: impl Into<String>, channel: ChannelId, user: UserId) -> Self {
        let fallback = Some(Fallback { channel, user });
        Destination::ResponseUrl { url: url.into(), fallback }
    }

    /// The word for logs, metrics and limits: never the address.
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

impl std::fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Outgoing({})", self.to.as_str())
    }
}
