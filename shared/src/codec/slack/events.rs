//! Fields of the Events API that Tidegate reads.

use crate::codec::loose::{First, Flag, Id, Number, Object, Text};
use serde::Deserialize;

/// Outer object of the Events API.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)] // Slack's names: docs.slack.dev/apis/events-api
pub struct EventBody<'a> {
    #[serde(borrow, rename = "type")]
    pub kind: Text<'a>,
    #[serde(borrow)]
    pub challenge: Text<'a>,
    #[serde(borrow)]
    pub event_id: Text<'a>,
    pub event_time: Number,
    #[serde(borrow)]
    pub api_app_id: Text<'a>,
    #[serde(borrow)]
    pub team_id: Text<'a>,
    #[serde(borrow)]
    pub enterprise_id: Text<'a>,
    #[serde(borrow)]
    pub authorizations: First<Authorization<'a>>,
    #[serde(borrow)]
    pub event: Object<Event<'a>>,
    pub minute_rate_limited: Number,
}

/// Installation that an event was sent for.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Authorization<'a> {
    #[serde(borrow)]
    pub team_id: Text<'a>,
    #[serde(borrow)]
    pub enterprise_id: Text<'a>,
    pub is_enterprise_install: Flag,
}

/// Inner event.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Event<'a> {
    #[serde(borrow, rename = "type")]
    pub kind: Text<'a>,
    #[serde(borrow)]
    pub subtype: Text<'a>,
    #[serde(borrow)]
    pub channel: Id<'a>,
    #[serde(borrow)]
    pub channel_type: Text<'a>,
    #[serde(borrow)]
    pub user: Id<'a>,
    /// Workspace of the author, in a channel shared with another company.
    #[serde(borrow)]
    pub user_team: Text<'a>,
    #[serde(borrow)]
    pub bot_id: Text<'a>,
    #[serde(borrow)]
    pub text: Text<'a>,
    #[serde(borrow)]
    pub ts: Text<'a>,
    #[serde(borrow)]
    pub thread_ts: Text<'a>,
    pub hidden: Flag,
    /// Metadata that the author attached.
    #[serde(borrow)]
    pub metadata: Object<Metadata<'a>>,
    /// Channel and message of a reaction or pin.
    #[serde(borrow)]
    pub item: Object<Item<'a>>,
    /// Edited or deleted message, with its own `ts`.
    #[serde(borrow)]
    pub message: Object<Item<'a>>,
    /// Ids of an assistant event.
    #[serde(borrow)]
    pub assistant_thread: Object<AssistantThread<'a>>,
}

impl Event<'_> {
    /// Returns the number of Tidegate's replies that led to this message, as counted in its
    /// metadata.
    pub fn hops(&self) -> u64 {
        let ours = self.metadata.0.as_ref().filter(|m| m.event_type.get() == Some("tidegate"));
        ours.and_then(|m| m.event_payload.0.as_ref()?.hops.0).unwrap_or(0)
    }
}

/// `event.metadata`: docs.slack.dev/messaging/message-metadata.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Metadata<'a> {
    #[serde(borrow)]
    pub event_type: Text<'a>,
    pub event_payload: Object<Noted>,
}

/// Metadata that Tidegate attaches to its messages.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Noted {
    pub hops: Number,
}

/// Message that an event refers to.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct Item<'a> {
    #[serde(borrow)]
    pub channel: Id<'a>,
    #[serde(borrow)]
    pub ts: Text<'a>,
    #[serde(borrow)]
    pub thread_ts: Text<'a>,
}

/// `event.assistant_thread`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
#[allow(missing_docs)]
pub struct AssistantThread<'a> {
    #[serde(borrow)]
    pub channel_id: Text<'a>,
    #[serde(borrow)]
    pub thread_ts: Text<'a>,
    #[serde(borrow)]
    pub user_id: Text<'a>,
}
