//! Sends messages and the command `clear` to an agent in mode `reply`.
//!
//! While a slow agent works the thread shows a status. A status that Slack rejects is ignored.

use super::Completion;
use crate::{
    agent_client::{AgentError, AgentReply, AgentRequest, FailureKind},
    context::{Context, WorkerTerm},
    routing::{self, AgentMessage, Webhook},
    slack::Method,
};
use shared::{
    store::{Agent, Connection, ConnectionFacts},
    types::TeamId,
};
use std::time::Duration;

/// Time after which the status of an agent is shown.
const STATUS_AFTER: Duration = Duration::from_secs(2);

/// Sends a message or `clear` to an agent. Returns the completion with the agent's reply.
pub async fn ask(
    context: &Context,
    term: &WorkerTerm,
    agent: &Agent,
    connection: &Connection,
    webhook: &Webhook<'_>,
    session: i64,
) -> Result<Completion, AgentError> {
    let facts = ConnectionFacts::from(connection);
    if let Some(clear) = routing::clear_command(webhook, &facts, &context.slash_command) {
        let request = AgentRequest {
            kind: "forget",
            connection: connection.id,
            team: &clear.chat.team,
            channel: &clear.chat.channel,
            user: clear.user.as_str(),
            text: "",
            ts: "",
            thread_ts: None,
            session,
        };
        let id = webhook.envelope.dedupe.as_str();
        return Ok(match context.agents.ask(agent, id, &request).await {
            Ok(_) => Completion { change: Some(clear.cleared()), ..Completion::new("completed") },
            // The person waits: a failure now is better than a success in an hour.
            Err(_) => Completion::unreached("completed", vec![clear.not_cleared()]),
        });
    }
    let Some(message) = routing::agent_message(webhook, connection.team.as_ref()) else {
        let message = "the webhook holds no message for an agent".to_owned();
        return Err(AgentError { kind: FailureKind::Refused, message, retry_after: None });
    };
    let answer = ask_message(context, term, agent, connection, webhook, &message, session).await?;
    Ok(match answer {
        Some(AgentReply { message: text, ephemeral, thread }) => {
            Completion::with("completed", vec![message.reply(text, ephemeral, thread)])
        }
        None => Completion::new("completed"),
    })
}

async fn ask_message(
    context: &Context,
    term: &WorkerTerm,
    agent: &Agent,
    connection: &Connection,
    webhook: &Webhook<'_>,
    message: &AgentMessage<'_>,
    session: i64,
) -> Result<Option<AgentReply>, AgentError> {
    let team: &TeamId = &message.team;
    let request = AgentRequest {
        kind: "message",
        connection: connection.id,
        team,
        channel: &message.channel,
        user: message.user,
        text: message.text,
        ts: message.ts,
        thread_ts: message.thread_ts,
        session,
    };
    let id = webhook.envelope.dedupe.as_str();
    let mut call = std::pin::pin!(context.agents.ask(agent, id, &request));
    let mut status = std::pin::pin!(async {
        tokio::time::sleep(STATUS_AFTER).await;
        set_status(context, term, connection, message, "is thinking…").await;
    });
    let mut shown = false;
    let answer = loop {
        tokio::select! {
            answer = &mut call => break answer,
            () = &mut status, if !shown => shown = true,
        }
    };
    // Slack removes the status when a reply is posted.
    if shown && !matches!(answer, Ok(Some(_))) {
        set_status(context, term, connection, message, "").await;
    }
    answer
}

async fn set_status(
    context: &Context,
    term: &WorkerTerm,
    connection: &Connection,
    message: &AgentMessage<'_>,
    status: &str,
) {
    let Some(token) = &connection.bot_token else { return };
    let slack = &context.slack;
    let Ok(permit) = slack.permit(connection.id, Method::SetStatus).await else { return };
    let thread = message.thread_ts.unwrap_or(message.ts);
    let body = serde_json::json!({
        "channel_id": message.channel.as_str(), "thread_ts": thread, "status": status,
    });
    if term.holds() {
        slack.call(permit, token, &body).await;
    }
}
