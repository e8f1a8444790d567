//! Classification of verified webhooks.
//!
//! Extracts the challenge to echo, the ids that route a webhook of the shared route, and kind,
//! partition, lane and dedup key. Never fails: a webhook that can't be parsed has the kind
//! `unknown` and is stored like all others. docs.slack.dev documents the fields of each kind; the
//! order in which they are searched for the installation is that of Bolt.

pub use crate::directory::Routing;

use crate::webhook::signature::Verified;
use shared::{
    codec::{
        envelope::DedupeKey,
        slack::{Command, Event, EventBody, Inbound, Interaction, Media, Parts},
    },
    partition::{Conversation, Lane, Partition},
    types::{ConnectionId, EnterpriseId, Kind, TeamId},
};

/// Kind of a webhook and its position in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placement {
    /// Kind of the webhook.
    pub kind: Kind,
    /// Partition of its channel.
    pub partition: Partition,
    /// Lane of its conversation.
    pub lane: Lane,
    /// Idempotency key, shared with Slack's retries.
    pub dedup_key: DedupeKey,
}

/// Returns the challenge of a `url_verification`, which is echoed and not stored.
pub fn challenge<'a>(inbound: &'a Inbound<'_>) -> Option<&'a str> {
    match inbound {
        Inbound::Event(body) if body.kind.get() == Some("url_verification") => body.challenge.get(),
        _ => None,
    }
}

/// Returns whether Slack reports that it withheld the events of a workspace for a minute because
/// there were too many. Slack may never send them.
pub fn is_rate_limit_notice(inbound: &Inbound<'_>) -> bool {
    matches!(inbound, Inbound::Event(body) if body.kind.get() == Some("app_rate_limited"))
}

/// Returns the kind of a webhook.
pub fn kind(inbound: &Inbound<'_>) -> Kind {
    match inbound {
        Inbound::Event(body) => match body.kind.get() {
            Some("event_callback" | "app_rate_limited") => Kind::Event,
            _ => Kind::Unknown,
        },
        Inbound::Command(_) => Kind::Command,
        Inbound::Interaction(interaction) => match interaction.kind.get() {
            Some("block_suggestion") => Kind::Options,
            Some(_) => Kind::Interaction,
            None => Kind::Unknown,
        },
        Inbound::NotUnderstood => Kind::Unknown,
    }
}

/// Returns whether Slack expects a sync response.
pub fn expects_sync_response(inbound: &Inbound<'_>) -> bool {
    let Inbound::Interaction(interaction) = inbound else { return false };
    matches!(interaction.kind.get(), Some("view_submission" | "block_suggestion"))
}

/// Decodes the form of a verified body, if it is one.
pub fn split(media: Media, verified: &Verified) -> Parts<'_> {
    Parts::split(media, verified.body())
}

/// Returns the ids that route a webhook of the shared route, or `None` if they are missing.
pub fn routing(inbound: &Inbound<'_>) -> Option<Routing> {
    let (app, enterprise, team) = match inbound {
        Inbound::Event(body) => event_installation(body),
        Inbound::Command(command) => command_installation(command),
        Inbound::Interaction(interaction) => interaction_installation(interaction),
        Inbound::NotUnderstood => return None,
    };
    // Malformed ids are ignored. Some Grid payloads have the enterprise's id as the team's.
    let enterprise: Option<EnterpriseId> = enterprise.and_then(|id| id.parse().ok());
    let team: Option<TeamId> =
        team.filter(|id| !id.starts_with('E')).and_then(|id| id.parse().ok());
    if enterprise.is_none() && team.is_none() {
        return None;
    }
    Some(Routing { app: app?.parse().ok()?, enterprise, team })
}

/// App, enterprise and team.
type Installation<'a> = (Option<&'a str>, Option<&'a str>, Option<&'a str>);

/// Returns the ids of `authorizations[0]`: the outer `team_id` may be that of another company
/// (Slack Connect).
fn event_installation<'a>(body: &'a EventBody<'_>) -> Installation<'a> {
    let app = body.api_app_id.get();
    match &body.authorizations.0 {
        Some(a) if a.is_enterprise_install.0 => (app, a.enterprise_id.get(), None),
        Some(a) => (app, a.enterprise_id.get(), a.team_id.get()),
        None => (app, body.enterprise_id.get(), body.team_id.get()),
    }
}

fn command_installation<'a>(command: &'a Command<'_>) -> Installation<'a> {
    let non_empty = |text: &'a str| (!text.is_empty()).then_some(text);
    let team =
        if command.is_enterprise_install == "true" { None } else { non_empty(&command.team_id) };
    (non_empty(&command.api_app_id), non_empty(&command.enterprise_id), team)
}

fn interaction_installation<'a>(interaction: &'a Interaction<'_>) -> Installation<'a> {
    let team = interaction.team.0.as_ref();
    let user_team = interaction.user.0.as_ref().and_then(|user| user.team_id.get());
    let enterprise =
        interaction.enterprise.get().or_else(|| team.and_then(|t| t.enterprise_id.get()));
    let team_id = match &interaction.view.0 {
        Some(view) => view
            .app_installed_team_id
            .get()
            .or_else(|| team.and_then(|t| t.id.get()))
            .or(user_team)
            .or_else(|| view.team_id.get()),
        None => team.and_then(|t| t.id.get()).or(user_team),
    };
    let team_id = if interaction.is_enterprise_install.0 { None } else { team_id };
    let enterprise = enterprise.or_else(|| team_id.filter(|id| id.starts_with('E')));
    (interaction.api_app_id.get(), enterprise, team_id)
}

/// Returns the placement of a webhook of a connection. `random_id` makes the dedup key of webhooks
/// that must never count as duplicates.
pub fn place(
    connection: ConnectionId,
    inbound: &Inbound<'_>,
    verified: &Verified,
    random_id: impl FnOnce() -> u128,
) -> Placement {
    let (channel, conversation) = conversation_of(inbound);
    Placement {
        kind: kind(inbound),
        partition: Partition::of(connection, channel),
        lane: Lane::of(connection, conversation),
        dedup_key: dedup_key(connection, inbound, random_id).unwrap_or_else(|| {
            let signed_at = verified.timestamp().as_str().as_bytes();
            DedupeKey::new(connection, "body", &[verified.body(), signed_at])
        }),
    }
}

/// Returns the dedup key from the ids that Slack repeats in a retry, or `None` if there are none.
fn dedup_key(
    connection: ConnectionId,
    inbound: &Inbound<'_>,
    random_id: impl FnOnce() -> u128,
) -> Option<DedupeKey> {
    match inbound {
        Inbound::Event(body) if is_rate_limit_notice(inbound) => {
            let minute = body.minute_rate_limited.0.unwrap_or_default().to_be_bytes();
            let team = body.team_id.get().unwrap_or_default().as_bytes();
            Some(DedupeKey::new(connection, "rate-limited", &[team, &minute]))
        }
        Inbound::Event(body) => body.event_id.get().map(|id| DedupeKey::event(connection, id)),
        Inbound::Command(command) if command.trigger_id.is_empty() => None,
        Inbound::Command(command) => {
            Some(DedupeKey::new(connection, "trigger", &[command.trigger_id.as_bytes()]))
        }
        // Two requests for options may be equal and are never duplicates.
        Inbound::Interaction(interaction) if interaction.kind.get() == Some("block_suggestion") => {
            Some(DedupeKey::new(connection, "options", &[&random_id().to_be_bytes()]))
        }
        Inbound::Interaction(interaction) => interaction_key(connection, interaction),
        Inbound::NotUnderstood => None,
    }
}

/// Returns the dedup key from `trigger_id`, which is new for every use, and `action_ts`. Ignores
/// `view.hash`: a corrected submission repeats it.
fn interaction_key(connection: ConnectionId, interaction: &Interaction<'_>) -> Option<DedupeKey> {
    let trigger = interaction.trigger_id.get()?.as_bytes();
    let action = interaction.actions.0.as_ref().and_then(|a| a.action_ts.get());
    let action = action.or_else(|| interaction.action_ts.get()).unwrap_or_default().as_bytes();
    Some(DedupeKey::new(connection, "action", &[trigger, action]))
}

/// Returns the channel, which decides the partition, and the conversation, which decides the lane.
fn conversation_of<'a>(inbound: &'a Inbound<'_>) -> (Option<&'a str>, Conversation<'a>) {
    match inbound {
        Inbound::Event(body) => match &body.event.0 {
            Some(event) => conversation_of_event(event),
            None => (None, Conversation::Elsewhere("")),
        },
        Inbound::Command(command) => {
            (Some(&command.channel_id), Conversation::Person(&command.channel_id, &command.user_id))
        }
        Inbound::Interaction(interaction) => {
            // A view has no channel; its webhooks share the root view, so partition and lane, too.
            if let Some(view) = &interaction.view.0 {
                let root = view.root_view_id.get().or_else(|| view.id.get()).unwrap_or_default();
                return (None, Conversation::View(root));
            }
            let container = interaction.container.0.as_ref().and_then(|c| c.channel_id.get());
            let channel = interaction.channel.get().or(container);
            let user =
                interaction.user.0.as_ref().and_then(|user| user.id.get()).unwrap_or_default();
            (channel, Conversation::Person(channel.unwrap_or("_"), user))
        }
        Inbound::NotUnderstood => (None, Conversation::Elsewhere("")),
    }
}

fn conversation_of_event<'a>(event: &'a Event<'_>) -> (Option<&'a str>, Conversation<'a>) {
    let (item, inner) = (event.item.0.as_ref(), event.message.0.as_ref());
    let assistant = event.assistant_thread.0.as_ref();
    let channel = event
        .channel
        .get()
        .or_else(|| item.and_then(|item| item.channel.get()))
        .or_else(|| assistant.and_then(|thread| thread.channel_id.get()));
    let Some(channel) = channel else {
        return (None, Conversation::Elsewhere(event.user.get().unwrap_or_default()));
    };
    let thread = event
        .thread_ts
        .get()
        .or_else(|| assistant.and_then(|thread| thread.thread_ts.get()))
        .or_else(|| inner.and_then(|message| message.thread_ts.get().or(message.ts.get())))
        .or_else(|| item.and_then(|item| item.ts.get()))
        .or_else(|| event.ts.get());
    let direct = event.channel_type.get() == Some("im") || channel.starts_with('D');
    let conversation = match thread {
        _ if direct => Conversation::DirectMessage(channel),
        Some(ts) => Conversation::Thread(channel, ts),
        None => Conversation::Channel(channel),
    };
    (Some(channel), conversation)
}
