//! Decides messages to an agent.
//!
//! Messages of bots reach an agent only if the connection's settings allow it, and the app's own
//! messages never: two bots that answer each other would not end. The metadata of an answer counts
//! the answers that led to it, up to a limit. A mention comes as two events (`app_mention` and
//! `message`), whose `ts` makes them one trigger.

use super::{Input, Webhook, commands, event, ignore};
use serde_json::{Value, json};
use shared::{
    codec::slack::{Event, EventBody, Inbound},
    store::{ConnectionFacts, Decision, Effects, IgnoreReason, ProcessedAs},
    types::{ChannelId, Destination, Outgoing, Surface, TeamId},
};

/// Maximum number of answers in a row to messages of bots.
const HOPS_MAX: i32 = 3;
/// Slack's own users, which post notices.
const SYSTEM_USERS: [&str; 2] = ["USLACK", "USLACKBOT"];

#[derive(Debug)]
pub(crate) struct AgentMessage<'a> {
    pub team: TeamId,
    /// Channel or direct message.
    pub channel: ChannelId,
    /// Author: a user id or a bot id.
    pub user: &'a str,
    /// Workspace of the author, if it may differ from the installation's.
    pub user_team: Option<&'a str>,
    pub text: &'a str,
    /// Id of the message in its channel.
    pub ts: &'a str,
    pub thread_ts: Option<&'a str>,
    /// True in a direct message with the bot.
    pub in_direct_message: bool,
    /// Number of agents' answers that led to the message.
    pub hops: i32,
}

/// Returns the message in a webhook, for an agent or not. `team` is the connection's.
pub(crate) fn agent_message<'a>(
    webhook: &'a Webhook<'_>,
    team: Option<&TeamId>,
) -> Option<AgentMessage<'a>> {
    let (body, event) = event(webhook)?;
    let channel: ChannelId = event.channel.get()?.parse().ok()?;
    let named = || installation_team(body)?.parse().ok();
    Some(AgentMessage {
        team: team.cloned().or_else(named)?,
        in_direct_message: is_direct(event),
        channel,
        user: event.user.get().or_else(|| event.bot_id.get())?,
        user_team: event.user_team.get(),
        text: event.text.get().unwrap_or_default(),
        ts: event.ts.get()?,
        thread_ts: event.thread_ts.get(),
        hops: hops(event),
    })
}

impl AgentMessage<'_> {
    pub(super) fn surface(&self) -> Surface {
        if self.in_direct_message { Surface::Dm } else { Surface::Channel }
    }

    /// Returns the outbox message for an agent's answer. In a channel it goes into the thread of
    /// the message, in a direct message it does not, unless `thread` decides.
    pub(crate) fn reply(
        &self,
        mut message: Value,
        ephemeral: bool,
        thread: Option<bool>,
    ) -> Outgoing {
        let in_thread = thread.unwrap_or(!self.in_direct_message);
        let thread = match thread {
            Some(false) => None,
            _ => self.thread_ts.or(in_thread.then_some(self.ts)),
        };
        let (channel, thread_ts) = (self.channel.clone(), thread.map(str::to_owned));
        let to = match self.user.parse() {
            Ok(user) if ephemeral => Destination::PostEphemeral { channel, user, thread_ts },
            _ => {
                let hops = self.hops.saturating_add(1);
                message["metadata"] =
                    json!({ "event_type": "tidegate", "event_payload": { "hops": hops } });
                Destination::PostMessage { channel, thread_ts }
            }
        };
        Outgoing { to, message }
    }
}

/// Returns the message to an agent in a webhook, or the reason why there is none.
pub(super) fn read<'a>(input: &Input<'a>) -> Result<AgentMessage<'a>, IgnoreReason> {
    let (_, event) = event(input.webhook).ok_or(IgnoreReason::NotAMessage)?;
    if !is_written(event) {
        return Err(IgnoreReason::NotAMessage);
    }
    let ConnectionFacts { team, bot_user, settings, .. } = input.connection;
    let refused_bot = is_by_bot(event) && (!settings.answer_bots || hops(event) >= HOPS_MAX);
    let user = event.user.get();
    let is_own = user.is_some() && user == bot_user.as_deref();
    if refused_bot || is_own || user.is_some_and(|user| SYSTEM_USERS.contains(&user)) {
        return Err(IgnoreReason::FromBot);
    }
    agent_message(input.webhook, team.as_ref()).ok_or(IgnoreReason::NotAMessage)
}

/// Decides a message in a conversation without an app.
pub(super) fn decide(input: &Input<'_>, message: &AgentMessage<'_>) -> Decision {
    if input.facts.trigger_processed {
        return ignore(IgnoreReason::SameTrigger);
    }
    let connection = input.connection;
    if let Some(agent) = input.agent() {
        return input.deliver(agent, input.lookup.trigger.clone());
    }
    let is_addressed_here = is_addressed(input.webhook, connection.bot_user.as_deref(), false);
    match commands::Invocation::of_message(connection, message) {
        Ok(invocation) if connection.preview_mode && is_addressed_here => {
            let messages = vec![invocation.reply(&commands::unlinked(input))];
            input.apply(Effects { messages, ..Effects::new(ProcessedAs::Notice) })
        }
        _ => input.ignore(IgnoreReason::NoAgent),
    }
}

/// Returns whether a person addressed the app: mention, direct message, command, click, submission,
/// or a message in a bound channel.
pub(crate) fn is_addressed(webhook: &Webhook<'_>, bot: Option<&str>, is_bound: bool) -> bool {
    match &webhook.inbound {
        Inbound::Command(_) => true,
        Inbound::Interaction(interaction) => {
            interaction.kind.get().is_some_and(|kind| kind != "view_closed")
        }
        Inbound::Event(_) => event(webhook).is_some_and(|(_, event)| {
            let is_own = event.user.get().is_some() && event.user.get() == bot;
            let text = event.text.get().unwrap_or_default();
            let is_mentioned = || bot.is_some_and(|bot| mentions(text, bot));
            let is_mention = event.kind.get() == Some("app_mention");
            let is_meant = is_mention || is_bound || is_direct(event) || is_mentioned();
            is_written(event) && !is_own && is_meant
        }),
        Inbound::NotUnderstood => false,
    }
}

/// Returns the workspace of the installation that an event was sent for. The outer workspace may be
/// another company's.
pub(super) fn installation_team<'a>(body: &'a EventBody<'_>) -> Option<&'a str> {
    let authorized = body.authorizations.0.as_ref().and_then(|a| a.team_id.get());
    authorized.or_else(|| body.team_id.get())
}

/// Returns the number of agents' answers that led to an event, 0 for a person's.
pub(super) fn hops(event: &Event<'_>) -> i32 {
    if is_by_bot(event) { event.hops().try_into().unwrap_or(i32::MAX) } else { 0 }
}

/// Returns the text after a mention of the bot at its start: `<@U1>` or `<@U1|name>`.
pub(super) fn after_mention<'a>(text: &'a str, bot: &str) -> Option<&'a str> {
    let rest = text.strip_prefix("<@")?.strip_prefix(bot)?;
    rest.starts_with(['>', '|']).then(|| rest.split_once('>').map_or("", |(_, rest)| rest))
}

fn mentions(text: &str, bot: &str) -> bool {
    text.match_indices("<@").any(|(at, _)| after_mention(&text[at..], bot).is_some())
}

/// Returns whether an event is a message that was written. Other subtypes are edits, joins and the
/// like.
fn is_written(event: &Event<'_>) -> bool {
    let written = [None, Some("file_share"), Some("thread_broadcast"), Some("me_message")];
    let subtype = event.subtype.get();
    matches!(event.kind.get(), Some("message" | "app_mention"))
        && !event.hidden.0
        && (written.contains(&subtype) || subtype == Some("bot_message"))
}

fn is_by_bot(event: &Event<'_>) -> bool {
    event.bot_id.get().is_some() || event.subtype.get() == Some("bot_message")
}

fn is_direct(event: &Event<'_>) -> bool {
    event.channel_type.get() == Some("im")
        || event.channel.get().is_some_and(|channel| channel.starts_with('D'))
}
