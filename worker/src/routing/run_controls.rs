//! Decides events that change the run of an earlier message: deletions, edits and stops.

use super::{
    Input, event, ignore,
    messages::{after_mention, is_direct, is_edit, is_written, raw_event},
};
use shared::{
    domain::{AgentMode, ChannelId, EditPolicy},
    store::{
        AgentRef, Change, ConversationChange, Decision, EditedMessage, Effects, IgnoreReason,
        ProcessedAs,
    },
};

/// Returns the decision on an event about a deleted message: an agent's answer to it is dropped.
pub(super) fn deletion(input: &Input<'_>) -> Option<Decision> {
    let (_, event) = event(input.webhook)?;
    let agent = input.agent().filter(|_| event.kind.get() == Some("message"))?;
    let raw = match event.subtype.get() {
        Some("message_deleted" | "message_changed") => raw_event(input.webhook),
        _ => return None,
    };
    let ts = match event.subtype.get() {
        Some("message_deleted") => raw["deleted_ts"].as_str(),
        // The first message of a thread that has replies leaves a tombstone.
        _ if raw["message"]["subtype"] == "tombstone" => raw["message"]["ts"].as_str(),
        _ => None,
    };
    let (ts, channel) = (ts?.to_owned(), event.channel.get()?.parse().ok()?);
    let is_valid = agent.mode == AgentMode::Reply && ts.bytes().all(|b| b.is_ascii_graphic());
    let action = ConversationChange::DropAnswer { connection: input.connection.id, channel, ts };
    let change = Change { action, reply: Box::new(|_| Vec::new()) };
    let effects = Effects { changes: vec![change], ..Effects::new(ProcessedAs::Deletion) };
    is_valid.then(|| Decision::Apply(Box::new(effects)))
}

/// Returns the decision on an edit of a message: the agent gets the new text, if the answer to the
/// old one has not begun. Slack also reports unfurled links and the like as changes.
pub(super) fn edit(input: &Input<'_>) -> Option<Decision> {
    let (_, event) = event(input.webhook).filter(|(_, event)| is_edit(event))?;
    let is_rerun = |agent: &&AgentRef| agent.policies.edits == EditPolicy::Rerun;
    let agent = input.agent().filter(|agent| agent.mode == AgentMode::Reply).filter(is_rerun)?;
    let raw = raw_event(input.webhook);
    let (message, before) = (&raw["message"], &raw["previous_message"]);
    let is_same = |name: &str| message[name] == before[name];
    if (is_same("text") && is_same("files")) || !before.is_object() {
        return None;
    }
    let edited = event.message.0.as_ref()?;
    let is_by_person = edited.bot_id.get().is_none() && edited.user.get().is_some();
    let is_ts = |ts: &&str| ts.len() <= 32 && ts.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let has_content = message["text"].as_str().is_some_and(|text| !text.trim().is_empty())
        || message["files"].as_array().is_some_and(|files| !files.is_empty());
    if !is_by_person || !has_content || message["subtype"] == "tombstone" {
        return None;
    }
    let edit = EditedMessage {
        connection: input.connection.id,
        lane: input.webhook.envelope.lane,
        channel: event.channel.get()?.parse().ok()?,
        ts: edited.ts.get().filter(is_ts)?.to_owned(),
        edited_at: event.ts.get().filter(is_ts)?.to_owned(),
    };
    let delivery = Some(input.delivery_to(agent));
    let effects = Effects { edit: Some(edit), delivery, ..Effects::new(ProcessedAs::Delivery) };
    Some(Decision::Apply(Box::new(effects)))
}

/// Word that stops the agent, as a message in a thread or a direct message.
const STOP_WORD: &str = "!stop";

/// Returns the decision on a stop of the agent: Slack's button, or the stop word.
pub(super) fn stop(input: &Input<'_>) -> Option<Decision> {
    let (_, event) = event(input.webhook)?;
    input.agent().filter(|agent| agent.mode == AgentMode::Reply)?;
    let channel: ChannelId = event.channel.get()?.parse().ok()?;
    let is_ts = |ts: &&str| ts.len() <= 32 && ts.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    let (before, thread_ts) = if event.kind.get() == Some("agent_session_stopped") {
        let raw = raw_event(input.webhook);
        let field = |name: &str| raw[name].as_str().filter(|ts| is_ts(ts)).map(str::to_owned);
        (field("event_ts")?, field("thread_ts"))
    } else {
        let text = event.text.get()?.trim();
        let bot = input.connection.bot_user.as_deref();
        let text = bot.and_then(|bot| after_mention(text, bot)).unwrap_or(text);
        if text.trim() != STOP_WORD || event.is_by_bot() || !is_written(event) {
            return None;
        }
        let thread_ts = event.thread_ts.get().filter(is_ts).map(str::to_owned);
        if thread_ts.is_none() && !is_direct(event) {
            return None; // begins a conversation, in which nothing runs yet
        }
        (event.ts.get().filter(is_ts)?.to_owned(), thread_ts)
    };
    let connection = input.connection.id;
    let action = ConversationChange::StopRuns { connection, channel, thread_ts, before };
    let change = Change { action, reply: Box::new(|_| Vec::new()) };
    let effects = Effects { changes: vec![change], ..Effects::new(ProcessedAs::Command) };
    Some(if input.facts.trigger_processed {
        ignore(IgnoreReason::SameTrigger)
    } else {
        input.apply(effects)
    })
}
