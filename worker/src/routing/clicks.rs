//! Decides clicks: on buttons of approvals, which Tidegate posted, and on buttons of an agent's own
//! messages.
//!
//! A button of an approval carries a random id, which only identifies the approval: the row in
//! Postgres lists who may decide, and the first allowed click counts. Every other click on a message
//! of an agent in mode `reply` is a question to that agent, also after the conversation was linked to
//! another one; feedback on an answer is also stored.

use super::{Input, RoutingOptions, Webhook, approvals, notice};
use serde_json::json;
use shared::{
    domain::{
        APPROVAL_ACTION_PREFIX, AgentId, AgentMode, ChannelId, Destination, OrgId, OutgoingMessage,
        Surface, TeamId, UserId,
    },
    slack::{InboundPayload, Interaction},
    store::{
        ApprovalResult, ApprovalUse, Change, ConversationChange, Decision, Effects, Facts,
        IgnoreReason, ProcessedAs,
    },
};

/// Type of Slack's buttons for feedback on an answer.
const FEEDBACK: &str = "feedback_buttons";
/// Text for a click on a message whose agent was removed.
const AGENT_REMOVED: &str =
    "The agent of this message was removed. Send a message to the current agent.";
/// Maximum characters of stored feedback.
const FEEDBACK_CHARS: usize = 100;

/// Ids of a click on a button of a message.
struct Click {
    channel: ChannelId,
    message_ts: String,
    user: UserId,
    team: TeamId,
}

/// Returns the id of the approval and the number of the clicked button. Returns `None` for other
/// clicks.
pub(crate) fn approval_of(interaction: &Interaction<'_>) -> Option<(String, usize)> {
    let action = interaction.actions.0.as_ref()?;
    if interaction.kind.get() != Some("block_actions") {
        return None;
    }
    let option = action.action_id.get()?.strip_prefix(APPROVAL_ACTION_PREFIX)?.parse().ok()?;
    let id = action.value.get()?;
    let is_id = id.len() == 32 && id.bytes().all(|b| b.is_ascii_hexdigit());
    is_id.then(|| (id.to_owned(), option))
}

/// Returns whether a click is feedback on an answer.
pub(crate) fn is_feedback(interaction: &Interaction<'_>) -> bool {
    interaction.actions.0.as_ref().and_then(|action| action.kind.get()) == Some(FEEDBACK)
}

/// Decides a click on a button of an approval. Returns `None` for other webhooks.
pub(super) fn decide_approval(input: &Input<'_>) -> Option<Decision> {
    let InboundPayload::Interaction(interaction) = &input.webhook.inbound else { return None };
    let (id, option) = approval_of(interaction)?;
    let Click { channel, message_ts, user, team } = click(input, interaction)?;
    let url = interaction.response_url.get().map(str::to_owned);
    let message = (channel.clone(), message_ts.clone());
    let reply = move |result: &ApprovalResult| -> Vec<OutgoingMessage> {
        let text = match result {
            ApprovalResult::Decided { content, decision } => {
                let (channel, ts) = message.clone();
                let to = Destination::UpdateMessage { channel, ts };
                return vec![OutgoingMessage {
                    to,
                    message: approvals::decided(content, decision),
                }];
            }
            ApprovalResult::AlreadyDecided(decision) => approvals::decided_text(decision),
            ApprovalResult::Expired => approvals::EXPIRED.to_owned(),
            ApprovalResult::NotAllowed => approvals::NOT_ALLOWED.to_owned(),
            ApprovalResult::Unknown => approvals::UNKNOWN.to_owned(),
        };
        let Some(url) = url.clone() else { return Vec::new() };
        let to = Destination::ResponseUrl { url, fallback: None };
        let message = json!({
            "response_type": "ephemeral", "replace_original": false, "text": text,
        });
        vec![OutgoingMessage { to, message }]
    };
    let connection = input.connection.id;
    let reply = Box::new(reply);
    let decide = ApprovalUse { id, connection, channel, message_ts, team, user, option, reply };
    let decide = Some(decide);
    let effects = Effects { decide, ..Effects::new(ProcessedAs::Approval) };
    Some(Decision::Apply(Box::new(effects)))
}

/// Returns the agent to load into `facts.author` for the decision.
pub(crate) fn author_query(
    webhook: &Webhook<'_>,
    facts: &Facts,
    options: &RoutingOptions,
) -> Option<(OrgId, AgentId)> {
    other_author(&Input::new(webhook, facts, &[], options).ok()?)
}

/// Decides a click on a message of another agent than that of the conversation. Returns `None` for
/// other webhooks.
pub(super) fn decide_for_author(input: &Input<'_>) -> Option<Decision> {
    let InboundPayload::Interaction(interaction) = &input.webhook.inbound else { return None };
    other_author(input).and_then(|_| decide(input, interaction))
}

/// Decides a click on a button of an agent's own message. Returns `None` for other interactions.
pub(super) fn decide(input: &Input<'_>, interaction: &Interaction<'_>) -> Option<Decision> {
    if interaction.kind.get() != Some("block_actions") {
        return None;
    }
    let Click { channel, message_ts: ts, user, .. } = click(input, interaction)?;
    let agent = match other_author(input) {
        Some(_) => input.facts.author.as_ref(),
        None => Some(input.agent()?),
    };
    let Some(agent) = agent.filter(|agent| agent.mode == AgentMode::Reply) else {
        return other_author(input).and_then(|_| refusal(input));
    };
    let is_direct = channel.as_str().starts_with('D');
    if !input.is_enabled_on(if is_direct { Surface::Dm } else { Surface::Channel }) {
        return Some(input.ignore(IgnoreReason::SurfaceDisabled));
    }
    let mut decision = input.deliver(agent, None);
    if let Decision::Apply(effects) = &mut decision
        && effects.delivery.is_some()
        && is_feedback(interaction)
    {
        let value = interaction.actions.0.as_ref().and_then(|action| action.value.get());
        let value = value.unwrap_or_default().replace('\0', "");
        let action = ConversationChange::AddFeedback {
            connection: input.connection.id,
            channel,
            ts,
            user,
            org: agent.org.clone(),
            agent: agent.id.clone(),
            value: value.chars().take(FEEDBACK_CHARS).collect(),
        };
        effects.changes.push(Change { action, reply: Box::new(|_| Vec::new()) });
    }
    Some(decision)
}

/// Returns the agent whose message was clicked, if the conversation has another agent by now. The
/// metadata of the message names the agent. An app can write such metadata with the connection's
/// token, so an agent must be one that the connection may be linked to.
fn other_author(input: &Input<'_>) -> Option<(OrgId, AgentId)> {
    let InboundPayload::Interaction(interaction) = &input.webhook.inbound else { return None };
    if interaction.kind.get() != Some("block_actions") || input.options.own_handler {
        return None;
    }
    let (org, id) = interaction.message.0.as_ref()?.agent()?.split_once('/')?;
    let (org, id): (OrgId, AgentId) = (org.parse().ok()?, id.parse().ok()?);
    let current = input.agent()?;
    let is_allowed = input.connection.preview_mode || org == input.connection.org;
    (is_allowed && (&current.org, &current.id) != (&org, &id)).then_some((org, id))
}

/// Answers a click on a message whose agent was removed.
fn refusal(input: &Input<'_>) -> Option<Decision> {
    let notice = notice(input.webhook, input.connection.team.as_ref(), AGENT_REMOVED)?;
    Some(input.apply(Effects { messages: vec![notice], ..Effects::new(ProcessedAs::Notice) }))
}

/// Returns the ids of a click on a message, or `None` if one is missing or malformed.
fn click(input: &Input<'_>, interaction: &Interaction<'_>) -> Option<Click> {
    let user = interaction.user.0.as_ref()?;
    let ts = interaction.message_ts_of()?;
    let is_ts = ts.len() <= 32 && ts.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let team = user.team_id.get().and_then(|team| team.parse().ok());
    Some(Click {
        channel: input.lookup.channel.as_ref()?.parse().ok()?,
        message_ts: is_ts.then(|| ts.to_owned())?,
        user: user.id.get()?.parse().ok()?,
        team: team
            .or_else(|| input.connection.team.clone())
            .or_else(|| input.lookup.team.as_ref()?.parse().ok())?,
    })
}
