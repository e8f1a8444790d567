//! What a verified webhook is, whose it is, and where it belongs. Never refuses: what is not understood is of
//! kind unknown and stored like the rest.
//!
//! In: [`Verified`] bytes. Out: the challenge to echo, the keys that route it on the shared route, and, once the
//! connection is known, kind, partition, lane and dedupe key. Where each kind keeps its ids is written in
//! docs.slack.dev; the order of looking for the installation is Bolt's.

use crate::webhook::signature::Verified;
use shared::{
    codec::{
        envelope::DedupeKey,
        slack::{Command, Event, EventBody, Inbound, Interaction, Media, Parts},
    },
    partition::{Conversation, Lane, Partition},
    types::{AppId, ConnectionId, EnterpriseId, Kind, TeamId},
};

/// Whose a webhook of the shared route is: the app, and the installation it was sent for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routing {
    /// The app.
    pub app: AppId,
    /// Its Enterprise organisation, if Slack names one.
    pub enterprise: Option<EnterpriseId>,
    /// Its workspace; absent on an organisation-wide install.
    pub team: Option<TeamId>,
}

/// Where a webhook belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Placed {
    /// What sort it is.
    pub kind: Kind,
    /// Its slice of the stream.
    pub partition: Partition,
    /// Its queue.
    pub lane: Lane,
    /// What makes a copy of it a duplicate.
    pub dedupe: DedupeKey,
}

/// The challenge of a `url_verification`, which is echoed and goes no further.
pub fn challenge<'a>(inbound: &'a Inbound<'_>) -> Option<&'a str> {
    match inbound {
        Inbound::Event(body) if body.kind.get() == Some("url_verification") => body.challenge.get(),
        _ => None,
    }
}

/// Whether Slack says that it withheld events of a workspace, for a minute: there were too many, and it may never send them.
pub fn tells_of_withheld_events(inbound: &Inbound<'_>) -> bool {
    matches!(inbound, Inbound::Event(body) if body.kind.get() == Some("app_rate_limited"))
}

/// What sort it is.
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

/// Whether Slack wants the answer in the HTTP response.
pub fn wants_answer(inbound: &Inbound<'_>) -> bool {
    let Inbound::Interaction(interaction) = inbound else { return false };
    matches!(interaction.kind.get(), Some("view_submission" | "block_suggestion"))
}

/// Undoes the outer coding of what was verified.
pub fn split(media: Media, verified: &Verified) -> Parts<'_> {
    Parts::split(media, verified.body())
}

/// Whose it is, on the shared route. `None` when it does not say.
pub fn routing(inbound: &Inbound<'_>) -> Option<Routing> {
    let (app, enterprise, team) = match inbound {
        Inbound::Event(body) => event_installation(body),
        Inbound::Command(command) => command_installation(command),
        Inbound::Interaction(interaction) => interaction_installation(interaction),
        Inbound::NotUnderstood => return None,
    };
    // An id that is no id routes nowhere. On some Grid payloads a team's place holds the organisation's id.
    let enterprise: Option<EnterpriseId> = enterprise.and_then(|id| id.parse().ok());
    let team: Option<TeamId> =
        team.filter(|id| !id.starts_with('E')).and_then(|id| id.parse().ok());
    if enterprise.is_none() && team.is_none() {
        return None;
    }
    Some(Routing { app: app?.parse().ok()?, enterprise, team })
}

type Installation<'a> = (Option<&'a str>, Option<&'a str>, Option<&'a str>);

/// `authorizations[0]` names the installation; the outer `team_id` may be another company's (Slack Connect).
fn event_installation<'a>(body: &'a EventBody<'_>) -> Installation<'a> {
    let app = body.api_app_id.get();
    match &body.authorizations.0 {
        Some(a) if a.is_enterprise_install.0 => (app, a.enterprise_id.get(), None),
        Some(a) => (app, a.enterprise_id.get(), a.team_id.get()),
        None => (app, body.enterprise_id.get(), body.team_id.get()),
    }
}

fn command_installation<'a>(command: &'a Command<'_>) -> Installation<'a> {
    let some = |text: &'a str| (!text.is_empty()).then_some(text);
    let team = if command.is_enterprise_install == "true" { None } else { some(&command.team_id) };
    (some(&command.api_app_id), some(&command.enterprise_id), team)
}

fn interaction_installation<'a>(interaction: &'a Interaction<'_>) -> Installation<'a> {
    let team = interaction.team.0.as_ref();
    let user_team = interaction.user.0.as_ref().and_then(|user| user.team_id.get());
    let enterprise =
        interaction.enterprise.get().or_else(|| team.and_then(|t| t.enterprise_id.get()));
    let found = match &interaction.view.0 {
        Some(view) => view
            .app_installed_team_id
            .get()
            .or_else(|| team.and_then(|t| t.id.get()))
            .or(user_team)
            .or_else(|| view.team_id.get()),
        None => team.and_then(|t| t.id.get()).or(user_team),
    };
    let found = if interaction.is_enterprise_install.0 { None } else { found };
    // An organisation's id in a team's place is still the organisation.
    let enterprise = enterprise.or_else(|| found.filter(|id| id.starts_with('E')));
    (interaction.api_app_id.get(), enterprise, found)
}

/// Where it belongs, for a connection. `fresh` makes an id that nothing has yet, for what must never be
/// taken for a copy.
pub fn place(
    connection: ConnectionId,
    inbound: &Inbound<'_>,
    verified: &Verified,
    fresh: impl FnOnce() -> u128,
) -> Placed {
    let (channel, conversation) = whereabouts(inbound);
    Placed {
        kind: kind(inbound),
        partition: Partition::of(connection, channel),
        lane: Lane::of(connection, conversation),
        dedupe: dedupe_key(connection, inbound, fresh).unwrap_or_else(|| {
            let signed_at = verified.timestamp().as_str().as_bytes();
            DedupeKey::new(connection, "body", &[verified.body(), signed_at])
        }),
    }
}

/// What Slack repeats when it repeats itself, by kind; `None` where there is nothing but the bytes.
fn dedupe_key(
    connection: ConnectionId,
    inbound: &Inbound<'_>,
    fresh: impl FnOnce() -> u128,
) -> Option<DedupeKey> {
    match inbound {
        Inbound::Event(body) if tells_of_withheld_events(inbound) => {
            let minute = body.minute_rate_limited.0.unwrap_or_default().to_be_bytes();
            let team = body.team_id.get().unwrap_or_default().as_bytes();
            Some(DedupeKey::new(connection, "rate-limited", &[team, &minute]))
        }
        Inbound::Event(body) => body.event_id.get().map(|id| DedupeKey::event(connection, id)),
        Inbound::Command(command) if command.trigger_id.is_empty() => None,
        Inbound::Command(command) => {
            Some(DedupeKey::new(connection, "trigger", &[command.trigger_id.as_bytes()]))
        }
        // Options are asked for again and again with the same words; no two askings are one.
        Inbound::Interaction(interaction) if interaction.kind.get() == Some("block_suggestion") => {
            Some(DedupeKey::new(connection, "options", &[&fresh().to_be_bytes()]))
        }
        Inbound::Interaction(interaction) => interaction_key(connection, interaction),
        Inbound::NotUnderstood => None,
    }
}

/// `trigger_id`, which is new for every use, and for a click its `action_ts`. Never `view.hash`: a submission
/// corrected and sent again repeats it.
fn interaction_key(connection: ConnectionId, interaction: &Interaction<'_>) -> Option<DedupeKey> {
    let trigger = interaction.trigger_id.get()?.as_bytes();
    let action = interaction.actions.0.as_ref().and_then(|a| a.action_ts.get());
    let action = action.or_else(|| interaction.action_ts.get()).unwrap_or_default().as_bytes();
    Some(DedupeKey::new(connection, "action", &[trigger, action]))
}

/// The channel, which makes the partition, and the conversation, which makes the lane.
fn whereabouts<'a>(inbound: &'a Inbound<'_>) -> (Option<&'a str>, Conversation<'a>) {
    match inbound {
        Inbound::Event(body) => match &body.event.0 {
            Some(event) => event_whereabouts(event),
            None => (None, Conversation::Elsewhere("")),
        },
        Inbound::Command(command) => {
            (Some(&command.channel_id), Conversation::Person(&command.channel_id, &command.user_id))
        }
        Inbound::Interaction(interaction) => {
            // A view lives in no channel; all of its webhooks share root and so partition and lane.
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

fn event_whereabouts<'a>(event: &'a Event<'_>) -> (Option<&'a str>, Conversation<'a>) {
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
