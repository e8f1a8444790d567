//! Mode `reply`: sends messages, clicks, decisions and the command `clear` to an agent.

use super::{
    Completion,
    approvals::{AskPlace, ask_change},
    message_policy::{AnswerPolicy, restrict},
};
use crate::{
    agent_client::{
        AgentError, AgentReply, AgentRequest, AgentStream, Answer, ApprovalAnswer, FailureKind,
        MessageContent, MessagePart, SessionChange, Subject, Trigger,
    },
    context::Context,
    dispatch::content,
    routing::{self, AgentMessage, Webhook},
};
use serde_json::Value;
use shared::{
    domain::Destination,
    runtime::telemetry::ErrorChain,
    slack::InboundPayload,
    store::{Agent, ClaimedDelivery, Connection, ConnectionFacts, RunControlReason, StoreError},
};
use tracing::warn;

/// Version of the protocol in `worker/docs/agents.md`.
const PROTOCOL: u8 = 2;

/// Result of a question to an agent.
pub enum AskOutcome {
    /// The delivery ends without a reply of the agent.
    Completed(Completion),
    /// The agent replied with JSON, and may change the session in Slack.
    Replied(Completion, SessionChange),
    /// The agent streams its answer.
    Streaming(AgentStream),
}

/// Run of a question, with the messages it answers.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    /// Id of the run, equal in all attempts.
    pub id: &'a str,
    /// Id of the last event that an earlier attempt stored.
    pub resume_after: Option<&'a str>,
    pub delivery: &'a ClaimedDelivery,
    /// Idempotency key of the question.
    pub request_id: &'a str,
    /// Merged messages; empty if there is only one message.
    pub parts: &'a [MessagePart],
    /// Timestamp of the last merged message.
    pub asked_at: Option<&'a str>,
}

/// Sends a question or `clear` to an agent. Returns its reply, or the stream of its answer.
pub async fn ask(
    context: &Context,
    agent: &Agent,
    connection: &Connection,
    webhook: &Webhook<'_>,
    run: Run<'_>,
) -> Result<AskOutcome, AgentError> {
    let facts = ConnectionFacts::from(connection);
    if let Some(clear) = routing::clear_command(webhook, &facts, &context.slash_command) {
        let request = AgentRequest {
            protocol: PROTOCOL,
            kind: "forget",
            run: run.id,
            trigger: trigger(webhook, "message", ""),
            connection: connection.id,
            team: &clear.conversation.team,
            channel: &clear.conversation.channel,
            user: clear.user.as_str(),
            text: "",
            ts: "",
            thread_ts: None,
            session: run.delivery.session,
            content: MessageContent::default(),
            subject: Subject::default(),
        };
        let id = webhook.envelope.dedup_key.as_str();
        let completion = match context.agents.ask(agent, id, &request, None).await {
            Ok(_) => {
                Completion { change: Some(clear.clear_change()), ..Completion::new("completed") }
            }
            // Not retried: the author waits for the result.
            Err(_) => Completion::unreached("completed", vec![clear.clear_failure()]),
        };
        return Ok(AskOutcome::Completed(completion));
    }
    let Some(message) = routing::agent_message(webhook, connection.team.as_ref()) else {
        let message = "the webhook holds no message for an agent".to_owned();
        return Err(AgentError { kind: FailureKind::Refused, message, retry_after: None });
    };
    let Some(question) = question(context, connection, webhook, run.parts).await? else {
        let deleted = Completion::unreached("approval_deleted", Vec::new());
        return Ok(AskOutcome::Completed(deleted));
    };
    let answer = ask_agent(context, agent, connection, webhook, &message, question, run).await?;
    let reply = match answer {
        Answer::Reply(reply) => reply,
        Answer::Stream(stream) => return Ok(AskOutcome::Streaming(stream)),
    };
    let control_outcome = match &reply {
        Some(_) => control_outcome(context, connection, webhook).await,
        None => None,
    };
    let Some(reply) = reply else {
        return Ok(AskOutcome::Completed(Completion::new("completed")));
    };
    if let Some(outcome) = control_outcome {
        return Ok(AskOutcome::Completed(Completion::new(outcome)));
    }
    let AgentReply { message: answer, markdown, ephemeral, thread, ask, session: change } = reply;
    let policy = AnswerPolicy::new(agent, connection);
    let answers = match markdown {
        Some(markdown) => {
            let blocks = answer["blocks"].as_array().map_or(&[][..], Vec::as_slice);
            content::messages(&markdown, blocks, policy.broadcasts)
        }
        None if answer.is_null() => Vec::new(),
        None => vec![answer],
    };
    let reply = |mut answer| {
        restrict(&mut answer, agent, connection);
        let mut reply = message.reply(answer, ephemeral, thread);
        // Clicks on the answer go to its agent. Ephemeral messages have no metadata.
        if let Destination::PostMessage { .. } = reply.to {
            let name = format!("{}/{}", agent.org, agent.id);
            reply.message["metadata"]["event_payload"]["agent"] = name.into();
        }
        reply
    };
    let messages = answers.into_iter().map(reply).collect();
    let mut completion = Completion::with_messages("completed", messages);
    if let Some(ask) = ask {
        let place = AskPlace {
            run: run.id,
            team: &message.team,
            channel: &message.channel,
            thread_ts: message.thread_of_reply(thread),
            user: message.user,
        };
        let change = ask_change(context, run.delivery, &place, ask, policy);
        completion.change = change.map_err(store_unavailable)?;
    }
    Ok(AskOutcome::Replied(completion, change))
}

/// Fields of a question that depend on its webhook.
struct Question {
    kind: &'static str,
    /// Value of `trigger.kind`.
    trigger: &'static str,
    subject: Subject,
}

/// Returns the question in a webhook. `None` if it is a decision on an approval that was deleted.
async fn question(
    context: &Context,
    connection: &Connection,
    webhook: &Webhook<'_>,
    parts: &[MessagePart],
) -> Result<Option<Question>, AgentError> {
    let InboundPayload::Interaction(interaction) = &webhook.inbound else {
        let trigger = match (routing::is_edit_webhook(webhook), parts.len()) {
            (true, _) => "edit",
            (false, 0 | 1) => "message",
            (false, _) => "merge",
        };
        let subject = Subject { parts: parts.to_vec(), ..Subject::default() };
        return Ok(Some(Question { kind: "message", trigger, subject }));
    };
    if let Some((id, _)) = routing::approval_of(interaction) {
        let decided = context.store.decided_approval(connection.id, &id).await;
        return Ok(decided.map_err(store_unavailable)?.map(|decided| {
            let approval = ApprovalAnswer {
                id: decided.ask,
                run: decided.run,
                decision: decided.decision,
                user: decided.by,
            };
            let subject = Subject { approval: Some(approval), ..Subject::default() };
            Question { kind: "approval", trigger: "approval", subject }
        }));
    }
    let kind = if routing::is_feedback(interaction) { "feedback" } else { "action" };
    let subject = Subject { actions: routing::raw_actions(webhook), ..Subject::default() };
    Ok(Some(Question { kind, trigger: kind, subject }))
}

/// Returns the failure of an attempt that could not query Postgres.
fn store_unavailable(error: StoreError) -> AgentError {
    let message = ErrorChain(&error).to_string();
    AgentError { kind: FailureKind::Unavailable, message, retry_after: None }
}

async fn ask_agent(
    context: &Context,
    agent: &Agent,
    connection: &Connection,
    webhook: &Webhook<'_>,
    message: &AgentMessage<'_>,
    question: Question,
    run: Run<'_>,
) -> Result<Answer, AgentError> {
    let Question { kind, trigger: cause, subject } = question;
    let text = subject.parts.iter().map(|part| &*part.text).collect::<Vec<_>>().join("\n");
    let request = AgentRequest {
        protocol: PROTOCOL,
        kind,
        run: run.id,
        trigger: trigger(webhook, cause, run.asked_at.unwrap_or(message.asked_at)),
        connection: connection.id,
        team: &message.team,
        channel: &message.channel,
        user: message.user,
        text: if subject.parts.is_empty() { message.text } else { &text },
        ts: message.ts,
        thread_ts: message.thread_ts,
        session: run.delivery.session,
        content: content(webhook),
        subject,
    };
    context.agents.ask(agent, run.request_id, &request, run.resume_after).await
}

/// Returns the outcome of a message to which a run control applies: it was deleted or edited, or
/// its answer was stopped or interrupted. `None` without a control, or if the query fails.
pub async fn control_outcome(
    context: &Context,
    connection: &Connection,
    webhook: &Webhook<'_>,
) -> Option<&'static str> {
    let message = routing::agent_message(webhook, connection.team.as_ref())?;
    let thread = message.thread_ts.unwrap_or(message.ts);
    let found = context.store.run_control(
        connection.id,
        &message.channel,
        thread,
        message.ts,
        message.asked_at,
    );
    match found.await {
        Ok(Some(RunControlReason::Deleted)) => Some("message_deleted"),
        Ok(Some(RunControlReason::Stop)) => Some("stopped"),
        Ok(Some(RunControlReason::Edited)) => Some("edited"),
        Ok(Some(RunControlReason::Interrupted)) => Some("interrupted"),
        Ok(None) => None,
        Err(error) => {
            let (connection, error) = (connection.id, ErrorChain(&error));
            warn!(%connection, %error, "failed to look up run control");
            None
        }
    }
}

fn trigger<'a>(webhook: &'a Webhook<'_>, kind: &'static str, ts: &'a str) -> Trigger<'a> {
    let event_id = match &webhook.inbound {
        InboundPayload::Event(body) => body.event_id.get(),
        _ => None,
    };
    Trigger { kind, ts, event_id }
}

/// Returns the content of a message besides its text.
pub fn content(webhook: &Webhook<'_>) -> MessageContent {
    let mut event = routing::raw_event(webhook);
    if routing::is_edit_webhook(webhook) {
        event = event["message"].take();
    }
    let mut list = |name: &str| match event[name].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    };
    let (files, attachments, blocks) = (list("files"), list("attachments"), list("blocks"));
    MessageContent { files, attachments, blocks }
}
