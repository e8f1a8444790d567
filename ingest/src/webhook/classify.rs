//! Classification of verified webhooks.
//!
//! Extracts challenge, kind, partition, lane and dedup key. Never fails: a webhook that can't be
//! parsed has the kind `unknown`, and is stored like all others. docs.slack.dev documents
//! the fields of each kind.

use crate::webhook::signature::Verified;
use shared::{
    domain::{ConnectionId, MediaType, WebhookKind},
    slack::{BodyParts, Event, InboundPayload, Interaction, SyncResponseKind},
    stream::{Conversation, DedupKey, Lane, Partition},
};

/// Kind, partition, lane and dedup key of a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Kind of the webhook.
    pub kind: WebhookKind,
    /// Partition of the channel.
    pub partition: Partition,
    /// Lane of the conversation.
    pub lane: Lane,
    /// Idempotency key, shared with Slack's retries.
    pub dedup_key: DedupKey,
}

/// Returns the challenge of a `url_verification`. It is echoed, and the webhook is not stored.
pub fn challenge<'a>(inbound: &'a InboundPayload<'_>) -> Option<&'a str> {
    match inbound {
        InboundPayload::Event(body) if body.kind.get() == Some("url_verification") => {
            body.challenge.get()
        }
        _ => None,
    }
}

/// Returns whether a webhook is Slack's notice that it withheld the events of a workspace for a
/// minute because of their number. Slack may never send these events.
pub fn is_rate_limit_notice(inbound: &InboundPayload<'_>) -> bool {
    matches!(inbound, InboundPayload::Event(body) if body.kind.get() == Some("app_rate_limited"))
}

/// Returns the kind of a webhook.
pub fn kind(inbound: &InboundPayload<'_>) -> WebhookKind {
    match inbound {
        InboundPayload::Event(body) => match body.kind.get() {
            Some("event_callback" | "app_rate_limited") => WebhookKind::Event,
            _ => WebhookKind::Unknown,
        },
        InboundPayload::Command(_) => WebhookKind::Command,
        InboundPayload::Interaction(_) if is_options_load(inbound) => WebhookKind::Options,
        InboundPayload::Interaction(interaction) if interaction.kind.get().is_some() => {
            WebhookKind::Interaction
        }
        InboundPayload::Interaction(_) | InboundPayload::Unparsable => WebhookKind::Unknown,
    }
}

/// Returns the sync response that Slack expects, if any.
pub fn sync_response_kind(inbound: &InboundPayload<'_>) -> Option<SyncResponseKind> {
    let InboundPayload::Interaction(interaction) = inbound else { return None };
    interaction.sync_response_kind()
}

fn is_options_load(inbound: &InboundPayload<'_>) -> bool {
    sync_response_kind(inbound) == Some(SyncResponseKind::Options)
}

/// Returns whether a webhook is an event about an installation. Only the connection of that
/// installation receives it.
pub fn is_installation_event(inbound: &InboundPayload<'_>) -> bool {
    matches!(inbound, InboundPayload::Event(body) if body.is_installation_event())
}

/// Removes the outer encoding of a verified body. Never fails.
pub fn split(media: MediaType, verified: &Verified) -> BodyParts<'_> {
    BodyParts::split(media, verified.body())
}

/// Returns the placement of a webhook of a connection. `random_id` is the source of dedup keys of
/// webhooks that are never duplicates.
pub fn place_webhook(
    connection: ConnectionId,
    inbound: &InboundPayload<'_>,
    verified: &Verified,
    random_id: impl FnOnce() -> u128,
) -> Placement {
    let (channel, conversation) = conversation_of(inbound);
    Placement {
        kind: kind(inbound),
        partition: Partition::of(connection, channel),
        lane: Lane::of(connection, conversation),
        dedup_key: dedup_key(connection, inbound, random_id).unwrap_or_else(|| {
            // Without the signature's timestamp: Slack signs each retry again.
            DedupKey::new(connection, "body", &[verified.body()])
        }),
    }
}

/// Returns the dedup key from the ids that Slack repeats in a retry, or `None` if there are none.
fn dedup_key(
    connection: ConnectionId,
    inbound: &InboundPayload<'_>,
    random_id: impl FnOnce() -> u128,
) -> Option<DedupKey> {
    match inbound {
        InboundPayload::Event(body) if is_rate_limit_notice(inbound) => {
            let minute = body.minute_rate_limited.0.unwrap_or_default().to_be_bytes();
            let team = body.team_id.get().unwrap_or_default().as_bytes();
            Some(DedupKey::new(connection, "rate-limited", &[team, &minute]))
        }
        InboundPayload::Event(body) => {
            body.event_id.get().map(|id| DedupKey::event(connection, id))
        }
        InboundPayload::Command(command) if command.trigger_id.is_empty() => None,
        InboundPayload::Command(command) => {
            Some(DedupKey::new(connection, "trigger", &[command.trigger_id.as_bytes()]))
        }
        // Two options requests may be equal, but are never duplicates.
        InboundPayload::Interaction(_) if is_options_load(inbound) => {
            Some(DedupKey::new(connection, "options", &[&random_id().to_be_bytes()]))
        }
        InboundPayload::Interaction(interaction) => interaction_key(connection, interaction),
        InboundPayload::Unparsable => None,
    }
}

/// Returns the dedup key from `trigger_id`, which is new for every use, and `action_ts`. Ignores
/// `view.hash`: a corrected submission repeats it.
fn interaction_key(connection: ConnectionId, interaction: &Interaction<'_>) -> Option<DedupKey> {
    let trigger = interaction.trigger_id.get()?.as_bytes();
    let action = interaction.actions.0.as_ref().and_then(|a| a.action_ts.get());
    let action = action.or_else(|| interaction.action_ts.get()).unwrap_or_default().as_bytes();
    Some(DedupKey::new(connection, "action", &[trigger, action]))
}

/// Returns the channel, which decides the partition, and the conversation, which decides the lane.
fn conversation_of<'a>(inbound: &'a InboundPayload<'_>) -> (Option<&'a str>, Conversation<'a>) {
    match inbound {
        InboundPayload::Event(body) => match &body.event.0 {
            Some(event) => conversation_of_event(event),
            None => (None, Conversation::WithoutChannel("")),
        },
        InboundPayload::Command(command) => {
            (Some(&command.channel_id), Conversation::Person(&command.channel_id, &command.user_id))
        }
        InboundPayload::Interaction(interaction) => {
            // A view has no channel. Its webhooks have one root view, so one partition and lane.
            if let Some(view) = &interaction.view.0 {
                let root = view.root_view_id.get().or_else(|| view.id.get()).unwrap_or_default();
                return (None, Conversation::View(root));
            }
            let channel = interaction.channel_of();
            let root = interaction.thread_root().filter(|_| !is_options_load(inbound));
            if let Some((channel, root)) = channel.zip(root) {
                return (Some(channel), conversation_of_message(channel, root));
            }
            let user =
                interaction.user.0.as_ref().and_then(|user| user.id.get()).unwrap_or_default();
            (channel, Conversation::Person(channel.unwrap_or("_"), user))
        }
        InboundPayload::Unparsable => (None, Conversation::WithoutChannel("")),
    }
}

fn conversation_of_event<'a>(event: &'a Event<'_>) -> (Option<&'a str>, Conversation<'a>) {
    let Some(channel) = event.channel_of() else {
        return (None, Conversation::WithoutChannel(event.user_of().unwrap_or_default()));
    };
    if let Some(root) = event.session_root() {
        return (Some(channel), Conversation::Thread(channel, root));
    }
    let conversation = match event.thread_ts_of().or_else(|| event.message_ts_of()) {
        _ if event.channel_type.get() == Some("im") => Conversation::DirectMessage(channel),
        Some(root) => conversation_of_message(channel, root),
        None if channel.starts_with('D') => Conversation::DirectMessage(channel),
        None => Conversation::Channel(channel),
    };
    (Some(channel), conversation)
}

/// Returns the conversation of a message by the first message of its thread.
fn conversation_of_message<'a>(channel: &'a str, root: &'a str) -> Conversation<'a> {
    if channel.starts_with('D') {
        Conversation::DirectMessage(channel)
    } else {
        Conversation::Thread(channel, root)
    }
}
