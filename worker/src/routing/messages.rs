//! Decides messages to an agent.
//!
//! Messages of bots reach an agent only if the connection's settings allow it, and the app's own
//! messages never: two bots could answer each other forever. The metadata of an answer counts the
//! answers that led to it, up to a limit. A mention comes as two events (`app_mention` and
//! `message`), which have the same `ts` and so are one trigger.

use super::{Input, Webhook, commands, event, ignore};
use serde_json::{Value, json};
use shared::{
    domain::{ChannelId, Destination, OutgoingMessage, OverlapPolicy, Surface, TeamId},
    slack::repair,
    slack::{BodyParts, Event, EventBody, InboundPayload, Interaction},
    store::{
        Change, ConnectionFacts, ConnectionState, ConversationChange, Decision, Effects, Facts,
        IgnoreReason, ProcessedAs,
    },
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
    pub text: &'a str,
    /// Id of the message in its channel.
    pub ts: &'a str,
    /// Time of the question by Slack's clock: that of the message, or of the click on it.
    pub asked_at: &'a str,
    pub thread_ts: Option<&'a str>,
    /// True in a direct message with the bot.
    pub in_direct_message: bool,
    /// False if the message cannot have a thread.
    pub has_thread: bool,
    /// Number of agents' answers that led to the message.
    pub hops: i32,
}

/// Returns the message in a webhook, or the clicked one, whether it is for an agent or not. `team`
/// is the connection's.
pub(crate) fn agent_message<'a>(
    webhook: &'a Webhook<'_>,
    team: Option<&TeamId>,
) -> Option<AgentMessage<'a>> {
    if let InboundPayload::Interaction(interaction) = &webhook.inbound {
        return clicked_message(interaction, team);
    }
    let (body, event) = event(webhook)?;
    let channel: ChannelId = event.channel.get()?.parse().ok()?;
    let named = || installation_team(body)?.parse().ok();
    let team = team.cloned().or_else(named)?;
    if is_edit(event) {
        let edited = event.message.0.as_ref()?;
        return Some(AgentMessage {
            team,
            in_direct_message: is_direct(event),
            has_thread: true,
            channel,
            user: edited.user.get()?,
            text: edited.text.get().unwrap_or_default(),
            ts: edited.ts.get()?,
            asked_at: event.ts.get()?,
            thread_ts: edited.thread_ts.get(),
            hops: 0,
        });
    }
    Some(AgentMessage {
        team,
        in_direct_message: is_direct(event),
        has_thread: true,
        channel,
        user: event.user.get().or_else(|| event.bot())?,
        text: event.text.get().unwrap_or_default(),
        ts: event.ts.get()?,
        asked_at: event.ts.get()?,
        thread_ts: event.thread_ts.get().or_else(|| event.session_root()),
        hops: hops(event),
    })
}

/// Returns the message that a person clicked.
fn clicked_message<'a>(
    interaction: &'a Interaction<'_>,
    team: Option<&TeamId>,
) -> Option<AgentMessage<'a>> {
    let user = interaction.user.0.as_ref()?;
    let of_team = || interaction.team.0.as_ref()?.id.get().or(user.team_id.get())?.parse().ok();
    let channel: ChannelId = interaction.channel_of()?.parse().ok()?;
    let ts = interaction.message_ts_of()?;
    // A message that one person sees has no thread.
    let is_ephemeral = interaction.container.0.as_ref().is_some_and(|c| c.is_ephemeral.0);
    let clicked_at = interaction.actions.0.as_ref().and_then(|action| action.action_ts.get());
    Some(AgentMessage {
        team: team.cloned().or_else(of_team)?,
        in_direct_message: channel.as_str().starts_with('D'),
        has_thread: !is_ephemeral,
        channel,
        user: user.id.get()?,
        text: "",
        ts,
        asked_at: clicked_at.unwrap_or(ts),
        thread_ts: interaction.thread_ts_of(),
        hops: 0,
    })
}

impl AgentMessage<'_> {
    /// Returns the `ts` of the thread in which a stream answers, also in a direct message.
    pub(crate) fn root_ts(&self) -> &str {
        self.thread_ts.unwrap_or(self.ts)
    }

    pub(super) fn surface(&self) -> Surface {
        if self.in_direct_message { Surface::Dm } else { Surface::Channel }
    }

    /// Returns the thread for an agent's answer.
    pub(crate) fn thread_of_reply(&self, thread: Option<bool>) -> Option<&str> {
        let in_thread = self.has_thread && thread.unwrap_or(!self.in_direct_message);
        match thread {
            Some(false) => None,
            _ => self.thread_ts.or(in_thread.then_some(self.ts)),
        }
    }

    /// Returns the outbox message for an agent's answer. In a channel it goes into the thread of
    /// the message, in a direct message it does not, unless `thread` decides.
    pub(crate) fn reply(
        &self,
        mut message: Value,
        ephemeral: bool,
        thread: Option<bool>,
    ) -> OutgoingMessage {
        let thread_ts = self.thread_of_reply(thread).map(str::to_owned);
        let channel = self.channel.clone();
        let to = match self.user.parse() {
            Ok(user) if ephemeral => Destination::PostEphemeral { channel, user, thread_ts },
            _ => {
                let hops = self.hops.saturating_add(1);
                message["metadata"] =
                    json!({ "event_type": "tidegate", "event_payload": { "hops": hops } });
                Destination::PostMessage { channel, thread_ts }
            }
        };
        OutgoingMessage { to, message }
    }
}

/// Returns the message in a webhook that an agent may get, or the reason why there is none.
pub(super) fn read<'a>(input: &Input<'a>) -> Result<AgentMessage<'a>, IgnoreReason> {
    let (_, event) = event(input.webhook).ok_or(IgnoreReason::NotAMessage)?;
    if !is_written(event) {
        return Err(IgnoreReason::NotAMessage);
    }
    let ConnectionFacts { team, bot_user, settings, .. } = input.connection;
    let refused_bot = event.is_by_bot() && (!settings.answer_bots || hops(event) >= HOPS_MAX);
    let user = event.user.get();
    let is_own = user.is_some() && user == bot_user.as_deref();
    if refused_bot || is_own || user.is_some_and(|user| SYSTEM_USERS.contains(&user)) {
        return Err(IgnoreReason::FromBot);
    }
    let message = agent_message(input.webhook, team.as_ref()).ok_or(IgnoreReason::NotAMessage)?;
    let has_content = || {
        let event = raw_event(input.webhook);
        let has = |name: &str| event[name].as_array().is_some_and(|list| !list.is_empty());
        ["files", "attachments", "blocks"].into_iter().any(has)
    };
    match message.text.trim().is_empty() && !has_content() {
        true => Err(IgnoreReason::NotAMessage),
        false => Ok(message),
    }
}

/// Decides a message in a conversation without an app.
pub(super) fn decide(input: &Input<'_>, message: &AgentMessage<'_>) -> Decision {
    if input.facts.trigger_processed {
        return ignore(IgnoreReason::SameTrigger);
    }
    let connection = input.connection;
    if let Some(agent) = input.agent() {
        let mut decision = input.deliver(agent, input.lookup.trigger.clone());
        if let Decision::Apply(effects) = &mut decision
            && effects.delivery.is_some()
            && agent.policies.overlap == OverlapPolicy::Interrupt
        {
            let action = ConversationChange::InterruptRun {
                connection: connection.id,
                lane: input.webhook.envelope.lane,
                channel: message.channel.clone(),
                before: message.ts.to_owned(),
            };
            effects.changes.push(Change { action, reply: Box::new(|_| Vec::new()) });
        }
        return decision;
    }
    let is_by_person = event(input.webhook).is_some_and(|(_, event)| !event.is_by_bot());
    let is_addressed_here =
        is_by_person && is_addressed(input.webhook, connection.bot_user.as_deref(), false);
    match commands::CommandInvocation::of_message(connection, message) {
        Ok(invocation) if is_addressed_here => {
            let messages = vec![invocation.reply(&commands::unlinked_text(input))];
            input.apply(Effects { messages, ..Effects::new(ProcessedAs::Notice) })
        }
        _ => input.ignore(IgnoreReason::NoAgent),
    }
}

/// Returns whether an event is an edit or another change of a message.
pub(super) fn is_edit(event: &Event<'_>) -> bool {
    event.kind.get() == Some("message") && event.subtype.get() == Some("message_changed")
}

/// Returns whether a webhook is an edit of a message.
pub(crate) fn is_edit_webhook(webhook: &Webhook<'_>) -> bool {
    event(webhook).is_some_and(|(_, event)| is_edit(event))
}

/// Returns whether a webhook is a newly written message, and not an edit or a click.
pub(crate) fn is_plain_message(webhook: &Webhook<'_>) -> bool {
    event(webhook).is_some_and(|(_, event)| is_written(event))
}

/// Returns the channel of an event if it is private or a direct message and the bot was not known
/// to be in it.
pub(crate) fn new_channel(webhook: &Webhook<'_>, facts: &Facts) -> Option<String> {
    let (_, event) = event(webhook).filter(|_| !facts.channel_known)?;
    if !matches!(facts.connection, ConnectionState::Known(_))
        || matches!(event.channel_type.get(), Some("channel"))
    {
        return None;
    }
    let channel: ChannelId = event.channel.get()?.parse().ok()?;
    let body: Value = serde_json::from_str(&repair(&webhook.envelope.body)).ok()?;
    // A person who authorized the app may be in conversations that the bot is not in.
    let is_of_bot = body["authorizations"][0]["is_bot"] != false;
    is_of_bot.then(|| channel.to_string())
}

/// Returns whether a person addressed the app: mention, direct message, command, click, submission,
/// or a message in a bound channel.
pub(crate) fn is_addressed(webhook: &Webhook<'_>, bot: Option<&str>, is_bound: bool) -> bool {
    match &webhook.inbound {
        InboundPayload::Command(_) => true,
        InboundPayload::Interaction(interaction) => {
            interaction.kind.get().is_some_and(|kind| kind != "view_closed")
        }
        InboundPayload::Event(_) => event(webhook).is_some_and(|(_, event)| {
            let is_own = event.user.get().is_some() && event.user.get() == bot;
            let text = event.text.get().unwrap_or_default();
            let is_mentioned = || bot.is_some_and(|bot| mentions(text, bot));
            let is_mention = event.kind.get() == Some("app_mention");
            let is_meant = is_mention || is_bound || is_direct(event) || is_mentioned();
            is_written(event) && !is_own && is_meant
        }),
        InboundPayload::Unparsable => false,
    }
}

/// Returns the inner event with all of its fields, null if the webhook has none.
pub(crate) fn raw_event(webhook: &Webhook<'_>) -> Value {
    let body: Result<Value, _> = serde_json::from_str(&repair(&webhook.envelope.body));
    body.map(|mut body| body["event"].take()).unwrap_or_default()
}

/// Returns the clicked elements of an interaction as Slack sent them.
pub(crate) fn raw_actions(webhook: &Webhook<'_>) -> Vec<Value> {
    let BodyParts::Payload(json) = BodyParts::split(webhook.envelope.media, &webhook.envelope.body)
    else {
        return Vec::new();
    };
    let payload: Result<Value, _> = serde_json::from_str(&json);
    match payload.unwrap_or_default()["actions"].take() {
        Value::Array(actions) => actions,
        _ => Vec::new(),
    }
}

/// Returns the workspace of the installation that an event was sent for. The outer workspace may be
/// another company's.
pub(super) fn installation_team<'a>(body: &'a EventBody<'_>) -> Option<&'a str> {
    let authorized = body.authorizations.0.first().and_then(|a| a.team_id.get());
    authorized.or(body.team_id.get()).or(body.context_team_id.get())
}

/// Returns the number of agents' answers that led to an event, 0 for a person's.
pub(super) fn hops(event: &Event<'_>) -> i32 {
    if event.is_by_bot() { event.hops().try_into().unwrap_or(i32::MAX) } else { 0 }
}

/// Returns the text after a mention of the bot at its start: `<@U1>` or `<@U1|name>`.
pub(super) fn after_mention<'a>(text: &'a str, bot: &str) -> Option<&'a str> {
    let rest = text.strip_prefix("<@")?.strip_prefix(bot)?;
    rest.starts_with(['>', '|']).then(|| rest.split_once('>').map_or("", |(_, rest)| rest))
}

fn mentions(text: &str, bot: &str) -> bool {
    text.match_indices("<@").any(|(at, _)| after_mention(&text[at..], bot).is_some())
}

/// Returns whether an event is a newly written message. Other subtypes are edits, joins and others.
/// A mention addresses the bot with other subtypes, too, such as `document_mention`.
pub(super) fn is_written(event: &Event<'_>) -> bool {
    let written = [None, Some("file_share"), Some("thread_broadcast"), Some("me_message")];
    let subtype = event.subtype.get();
    let is_written = match event.kind.get() {
        Some("message") => written.contains(&subtype) || subtype == Some("bot_message"),
        Some("app_mention") => !matches!(subtype, Some("message_changed" | "message_deleted")),
        _ => false,
    };
    is_written && !event.hidden.0
}

pub(super) fn is_direct(event: &Event<'_>) -> bool {
    event.channel_type.get() == Some("im")
        || event.channel.get().is_some_and(|channel| channel.starts_with('D'))
}
