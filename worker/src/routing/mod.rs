//! Pure function that decides a webhook from the facts in Postgres.
//!
//! Called by the decider for intake, redrives and replays, and by dispatch for parts of a webhook.
//! No I/O, clock or randomness: the same arguments give the same [`Decision`], so a webhook may be
//! decided again. Installation events and Tidegate's commands come first. All other webhooks go to
//! the team's own handler, if there is one, or to the agent of the conversation: an app (mode
//! `forward`) gets everything, an agent (mode `reply`) gets messages and clicks.

mod approvals;
mod backlog;
mod clicks;
mod commands;
mod installation_events;
mod run_controls;
mod messages;
mod notices;
mod questions;
mod views;

pub(crate) use approvals::{
    TOO_MANY as TOO_MANY_APPROVALS, asking as pending_approval_message,
    expired as expired_approval_message,
};
pub(crate) use backlog::limit_backlog;
pub(crate) use clicks::{approval_of, author_query, is_feedback};
pub(crate) use commands::clear_command;
pub(crate) use messages::{
    AgentMessage, agent_message, is_addressed, is_edit_webhook, is_plain_message, new_channel,
    raw_actions, raw_event,
};
pub(crate) use notices::{WAITING, escape, notice, response_url};

use shared::{
    domain::{
        AgentId, AgentMode, ChannelId, ConnectionStatus, OrgId, Surface, TeamId, UserId,
        WebhookKind,
    },
    slack::{Event, EventBody, InboundPayload},
    store::{
        AgentRef, ConnectionFacts, ConnectionState, Decision, Effects, Facts, IgnoreReason,
        NamedAgent, NewDelivery, Priority, ProcessedAs, QuestionEffect, WebhookIds,
    },
    stream::{DedupKey, Envelope},
};

#[derive(Debug, Clone)]
pub(crate) struct RoutingOptions {
    pub slash_command: String,
    /// True if webhooks go to the team's own handler instead of agents.
    pub own_handler: bool,
    /// Maximum questions of one person to the team's own handler in a minute.
    pub handler_max_per_user: i32,
}

/// Stored webhook with its parsed body.
#[derive(Debug)]
pub(crate) struct Webhook<'a> {
    pub envelope: &'a Envelope,
    /// Body as far as Tidegate parses it.
    pub inbound: InboundPayload<'a>,
}

/// Keys by which the facts of a webhook are loaded.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    pub team: Option<String>,
    pub channel: Option<String>,
    /// Key of the message, shared by the two events that Slack sends for a mention.
    pub trigger: Option<DedupKey>,
}

/// Query for the named agents that a command needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NamedAgentQuery {
    None,
    OfOrganization(OrgId),
    /// Agents with an id that a person may link by name.
    Linkable {
        team: TeamId,
        user: UserId,
        agent: AgentId,
    },
}

/// Returns the ids of a webhook, for look-ups and logs.
pub(crate) fn ids(webhook: &Webhook<'_>) -> WebhookIds {
    // Postgres rejects some characters, which no Slack id has.
    let valid = |id: Option<&str>| {
        id.filter(|id| (1..=100).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()))
            .map(str::to_owned)
    };
    let (team, channel) = team_and_channel(&webhook.inbound);
    let mut ids =
        WebhookIds { team: valid(team), channel: valid(channel), ..WebhookIds::default() };
    match &webhook.inbound {
        InboundPayload::Event(body) => {
            ids.event_id = valid(body.event_id.get());
            ids.own_time = body.event_time.0.map(seconds);
            if let Some(event) = &body.event.0 {
                // An edit, a reaction or a pin is looked up by its message.
                ids.ts = valid(event.message_ts_of());
                ids.thread_ts = valid(event.thread_ts_of());
                ids.user = valid(event.user_of());
                let second = |ts: &str| ts.split('.').next()?.parse::<u64>().ok();
                let of_message = || event.ts.get().and_then(second).map(seconds);
                ids.own_time = ids.own_time.or_else(of_message);
            }
        }
        InboundPayload::Command(command) => ids.user = valid(Some(&command.user_id)),
        InboundPayload::Interaction(interaction) => {
            ids.user = valid(interaction.user.0.as_ref().and_then(|user| user.id.get()));
            ids.ts = valid(interaction.message_ts_of());
            ids.thread_ts = valid(interaction.thread_ts_of());
        }
        InboundPayload::Unparsable => {}
    }
    ids
}

/// Returns the keys by which the facts of a webhook are loaded. Malformed ids are left out.
pub(crate) fn lookup(webhook: &Webhook<'_>) -> Lookup {
    let (team, channel) = team_and_channel(&webhook.inbound);
    let team = team.filter(|team| team.parse::<TeamId>().is_ok()).map(str::to_owned);
    let channel = channel.filter(|id| id.parse::<ChannelId>().is_ok()).map(str::to_owned);
    let trigger = event(webhook).and_then(|(_, event)| {
        let is_message = matches!(event.kind.get(), Some("message" | "app_mention"));
        let (channel, ts) = event.channel.get().filter(|_| is_message).zip(event.ts.get())?;
        let parts = [channel.as_bytes(), ts.as_bytes()];
        Some(DedupKey::new(webhook.envelope.connection, "trigger-of-agent", &parts))
    });
    Lookup { team, channel, trigger }
}

/// Returns the query for the named agents that [`decide`] needs.
pub(crate) fn named_agent_query(
    webhook: &Webhook<'_>,
    facts: &Facts,
    options: &RoutingOptions,
) -> NamedAgentQuery {
    match Input::new(webhook, facts, &[], options) {
        Ok(input) if !facts.trigger_processed => commands::named_agent_query(&input),
        _ => NamedAgentQuery::None,
    }
}

/// Decides a webhook. `named_agents` is the result of [`named_agent_query`].
pub(crate) fn decide(
    webhook: &Webhook<'_>,
    facts: &Facts,
    named_agents: &[NamedAgent],
    options: &RoutingOptions,
) -> Decision {
    match Input::new(webhook, facts, named_agents, options) {
        Ok(input) => decide_input(&input),
        Err(decision) => decision,
    }
}

fn decide_input(input: &Input<'_>) -> Decision {
    if let Some(decision) = installation_events::decide(input) {
        return decision;
    }
    let message = messages::read(input);
    let own_handler = input.options.own_handler;
    if let Ok(message) = &message
        && !own_handler
        && !input.is_enabled_on(message.surface())
    {
        return input.ignore(IgnoreReason::SurfaceDisabled);
    }
    match commands::find(input) {
        Some(Ok(_)) if input.facts.trigger_processed => return ignore(IgnoreReason::SameTrigger),
        Some(Ok((invocation, text))) => {
            return input.apply(commands::run(input, invocation, &text));
        }
        Some(Err(error)) => {
            let reason = "a command without team, channel or user";
            return Decision::DeadLetter { reason, error: error.to_string() };
        }
        None => {}
    }
    // Both events of a mention are delivered: an app or a handler may listen to either.
    if own_handler {
        let refusal = questions::refusal(input, input.options.handler_max_per_user, None);
        return refusal.unwrap_or_else(|| views::deliver_to_worker(input));
    }
    if let Some(decision) = clicks::decide_approval(input) {
        return decision;
    }
    if let Some(decision) = clicks::decide_for_author(input) {
        return decision;
    }
    if let Some(app) = input.app() {
        return input.deliver(app, None);
    }
    if let Some(decision) = run_controls::stop(input) {
        return decision;
    }
    match (&input.webhook.inbound, message) {
        (InboundPayload::Event(_), Ok(message)) => messages::decide(input, &message),
        (InboundPayload::Event(body), Err(reason)) => match body.kind.get() {
            Some("event_callback" | "app_rate_limited") => {
                let changed = run_controls::deletion(input).or_else(|| run_controls::edit(input));
                changed.unwrap_or_else(|| input.ignore(reason))
            }
            kind => unparsable(kind.unwrap_or("no type")),
        },
        (InboundPayload::Interaction(interaction), _) => {
            clicks::decide(input, interaction).unwrap_or_else(|| views::decide(input, interaction))
        }
        (InboundPayload::Command(_) | InboundPayload::Unparsable, _) => {
            unparsable("neither event, command nor interaction")
        }
    }
}

/// Arguments of a decision. The connection is usable.
struct Input<'a> {
    webhook: &'a Webhook<'a>,
    connection: &'a ConnectionFacts,
    facts: &'a Facts,
    named_agents: &'a [NamedAgent],
    options: &'a RoutingOptions,
    lookup: Lookup,
}

impl<'a> Input<'a> {
    /// Creates the arguments. The error is the decision on a duplicate or an unusable connection.
    fn new(
        webhook: &'a Webhook<'a>,
        facts: &'a Facts,
        named_agents: &'a [NamedAgent],
        options: &'a RoutingOptions,
    ) -> Result<Self, Decision> {
        if facts.processed {
            return Err(ignore(IgnoreReason::Duplicate));
        }
        let connection = match &facts.connection {
            ConnectionState::Known(connection) => &**connection,
            ConnectionState::Unknown => {
                let reason = "connection is unknown";
                let error = webhook.envelope.connection.to_string();
                return Err(Decision::DeadLetter { reason, error });
            }
            ConnectionState::Unreadable(why) => {
                let reason = "the connection is unreadable";
                return Err(Decision::DeadLetter { reason, error: why.clone() });
            }
            ConnectionState::Deleted => {
                let addressed = messages::is_addressed(webhook, None, false);
                return Err(Decision::Ignore {
                    reason: IgnoreReason::ConnectionDeleted,
                    addressed,
                });
            }
        };
        let lookup = lookup(webhook);
        let input = Self { webhook, connection, facts, named_agents, options, lookup };
        match connection.status {
            // A pending connection lacks a token, so its sends wait. Status `error` may be
            // outdated.
            ConnectionStatus::Pending | ConnectionStatus::Active | ConnectionStatus::Error => {
                Ok(input)
            }
            ConnectionStatus::Stopped => Err(input.ignore(IgnoreReason::ConnectionStopped)),
            ConnectionStatus::Revoked => Err(input.ignore(IgnoreReason::ConnectionRevoked)),
        }
    }

    /// Returns the agent of the webhook's conversation; the connection's own agent outside
    /// conversations.
    fn agent(&self) -> Option<&'a AgentRef> {
        let has_team = self.connection.team.is_some() || self.lookup.team.is_some();
        if has_team && self.lookup.channel.is_some() {
            self.facts.conversation.agent.as_ref()
        } else {
            self.facts.own_agent.as_ref()
        }
    }

    /// Returns the agent if it is an app (mode `forward`).
    fn app(&self) -> Option<&'a AgentRef> {
        self.agent().filter(|agent| agent.mode == AgentMode::Forward)
    }

    fn is_enabled_on(&self, surface: Surface) -> bool {
        self.connection.settings.surfaces.contains(&surface)
    }

    fn priority(&self) -> Priority {
        match self.webhook.envelope.kind {
            WebhookKind::Command | WebhookKind::Interaction | WebhookKind::Options => {
                Priority::Interactive
            }
            WebhookKind::Event | WebhookKind::Unknown => Priority::Background,
        }
    }

    fn delivery_to(&self, agent: &AgentRef) -> NewDelivery {
        let hops = event(self.webhook).map_or(0, |(_, event)| messages::hops(event));
        let session = self.facts.conversation.session;
        NewDelivery { hops, ..NewDelivery::to_agent(agent, session, self.priority()) }
    }

    /// Decides to deliver the webhook to an agent. While the agent's circuit breaker is open, the
    /// person who addressed the app gets a notice.
    fn deliver(&self, agent: &AgentRef, trigger: Option<DedupKey>) -> Decision {
        if let Some(refusal) = questions::refusal(self, agent.max_per_user, trigger.as_ref()) {
            return refusal;
        }
        let mut delivery = self.delivery_to(agent);
        let connection = self.connection;
        let is_meant = || {
            let is_message = agent.mode == AgentMode::Reply;
            messages::is_addressed(self.webhook, connection.bot_user.as_deref(), is_message)
        };
        let has_waiting_notice = self.facts.is_notice_due && is_meant();
        let team = connection.team.as_ref();
        let notice =
            has_waiting_notice.then(|| notice(self.webhook, team, notices::WAITING)).flatten();
        delivery.has_waiting_notice = notice.is_some();
        let messages = notice.into_iter().collect();
        let effects = Effects {
            delivery: Some(delivery),
            messages,
            question: self.question(),
            trigger,
            ..Effects::new(ProcessedAs::Delivery)
        };
        Decision::Apply(Box::new(effects))
    }

    fn question(&self) -> Option<QuestionEffect> {
        questions::is_question(self.webhook).then_some(QuestionEffect::Asked)
    }

    /// Decides to apply effects, at most once for all webhooks about one message.
    fn apply(&self, effects: Effects) -> Decision {
        Decision::Apply(Box::new(Effects { trigger: self.lookup.trigger.clone(), ..effects }))
    }

    fn ignore(&self, reason: IgnoreReason) -> Decision {
        let is_bound = self.facts.conversation.linked_by.is_some();
        let bot = self.connection.bot_user.as_deref();
        let addressed = messages::is_addressed(self.webhook, bot, is_bound);
        Decision::Ignore { reason, addressed }
    }
}

/// Returns the event of an `event_callback`, with its outer object.
fn event<'a>(webhook: &'a Webhook<'_>) -> Option<(&'a EventBody<'a>, &'a Event<'a>)> {
    let InboundPayload::Event(body) = &webhook.inbound else { return None };
    let event = body.event.0.as_ref().filter(|_| body.kind.get() == Some("event_callback"))?;
    Some((body, event))
}

/// Returns the workspace and the channel that a body names.
fn team_and_channel<'a>(inbound: &'a InboundPayload<'_>) -> (Option<&'a str>, Option<&'a str>) {
    match inbound {
        InboundPayload::Event(body) => {
            let channel = body.event.0.as_ref().and_then(Event::channel_of);
            (messages::installation_team(body), channel)
        }
        InboundPayload::Command(command) => (Some(&*command.team_id), Some(&*command.channel_id)),
        InboundPayload::Interaction(interaction) => {
            let of_user = || interaction.user.0.as_ref()?.team_id.get();
            let team = interaction.team.0.as_ref().and_then(|team| team.id.get());
            (team.or_else(of_user), interaction.channel_of())
        }
        InboundPayload::Unparsable => (None, None),
    }
}

/// Converts an event's time to seconds. Slack also sends milliseconds and microseconds.
fn seconds(event_time: u64) -> i64 {
    let seconds = match event_time {
        0..100_000_000_000 => event_time,
        100_000_000_000..100_000_000_000_000 => event_time / 1000,
        _ => event_time / 1_000_000,
    };
    seconds as i64
}

/// Decides to ignore a duplicate, without a record for operators.
fn ignore(reason: IgnoreReason) -> Decision {
    Decision::Ignore { reason, addressed: false }
}

fn unparsable(detail: &str) -> Decision {
    let error = detail.chars().take(80).collect();
    Decision::DeadLetter { reason: "signed by Slack, but not understood", error }
}

#[cfg(test)]
mod tests;
