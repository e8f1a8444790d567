//! Sends messages and the command `clear` to an agent in mode `reply`.

use super::{
    Completion,
    message_policy::{AnswerPolicy, restrict},
};
use crate::{
    agent_client::{
        AgentError, AgentReply, AgentRequest, AgentStream, Answer, FailureKind, MessageContent,
        SessionChange, Trigger,
    },
    context::Context,
    dispatch::content,
    routing::{self, Webhook},
};
use serde_json::Value;
use shared::{
    runtime::telemetry::ErrorChain,
    slack::InboundPayload,
    store::{Agent, Connection, ConnectionFacts, RunControlReason},
};
use tracing::warn;

/// Version of the protocol.
const PROTOCOL: u8 = 2;

/// Answer of an agent to a webhook.
pub enum Asked {
    Completed(Completion),
    /// Answered by JSON, perhaps with a change of the session in Slack.
    Replied(Completion, SessionChange),
    Streaming(AgentStream),
}

/// Execution of a question.
#[derive(Debug, Clone, Copy)]
pub struct Run<'a> {
    pub id: &'a str,
    /// Id of the last event of an earlier attempt.
    pub resume_after: Option<&'a str>,
}

/// Sends a message or `clear` to an agent. Returns the completion with the agent's reply, or the
/// stream of the answer.
pub async fn ask(
    context: &Context,
    agent: &Agent,
    connection: &Connection,
    webhook: &Webhook<'_>,
    session: i64,
    run: Run<'_>,
) -> Result<Asked, AgentError> {
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
            session,
            content: MessageContent::default(),
        };
        let id = webhook.envelope.dedup_key.as_str();
        return Ok(Asked::Completed(match context.agents.ask(agent, id, &request, None).await {
            Ok(_) => {
                Completion { change: Some(clear.clear_change()), ..Completion::new("completed") }
            }
            // The person waits: a failure now is better than a success in an hour.
            Err(_) => Completion::unreached("completed", vec![clear.clear_failure()]),
        }));
    }
    let Some(message) = routing::agent_message(webhook, connection.team.as_ref()) else {
        let message = "the webhook holds no message for an agent".to_owned();
        return Err(AgentError { kind: FailureKind::Refused, message, retry_after: None });
    };
    let request = AgentRequest {
        protocol: PROTOCOL,
        kind: "message",
        run: run.id,
        trigger: trigger(webhook, "message", message.ts),
        connection: connection.id,
        team: &message.team,
        channel: &message.channel,
        user: message.user,
        text: message.text,
        ts: message.ts,
        thread_ts: message.thread_ts,
        session,
        content: content(webhook),
    };
    let id = webhook.envelope.dedup_key.as_str();
    let answer = context.agents.ask(agent, id, &request, run.resume_after).await?;
    let reply = match answer {
        Answer::Reply(reply) => reply,
        Answer::Stream(stream) => return Ok(Asked::Streaming(stream)),
    };
    let unwanted = match &reply {
        Some(_) => unwanted(context, connection, webhook).await,
        None => None,
    };
    Ok(Asked::Completed(match reply {
        Some(_) if unwanted.is_some() => Completion::new(unwanted.unwrap_or_default()),
        Some(AgentReply { message: answer, markdown, ephemeral, thread, session: change }) => {
            let answers = match markdown {
                Some(markdown) => {
                    let blocks = answer["blocks"].as_array().map_or(&[][..], Vec::as_slice);
                    let broadcasts = AnswerPolicy::new(agent, connection).broadcasts;
                    content::messages(&markdown, blocks, broadcasts)
                }
                None => vec![answer],
            };
            let reply = |mut answer| {
                restrict(&mut answer, agent, connection);
                message.reply(answer, ephemeral, thread)
            };
            let messages = answers.into_iter().map(reply).collect();
            return Ok(Asked::Replied(Completion::with_messages("completed", messages), change));
        }
        None => Completion::new("completed"),
    }))
}

/// Returns the outcome of a message that was deleted, or whose answer was stopped, meanwhile. Nobody
/// waits for an answer then.
pub async fn unwanted(
    context: &Context,
    connection: &Connection,
    webhook: &Webhook<'_>,
) -> Option<&'static str> {
    let message = routing::agent_message(webhook, connection.team.as_ref())?;
    let thread = message.thread_ts.unwrap_or(message.ts);
    let found = context.store.run_control(connection.id, &message.channel, thread, message.ts);
    match found.await {
        Ok(Some(RunControlReason::Deleted)) => Some("message_deleted"),
        Ok(Some(RunControlReason::Stop)) => Some("stopped"),
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
fn content(webhook: &Webhook<'_>) -> MessageContent {
    let mut event = routing::raw_event(webhook);
    let mut list = |name: &str| match event[name].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    };
    let (files, attachments, blocks) = (list("files"), list("attachments"), list("blocks"));
    MessageContent { files, attachments, blocks }
}
