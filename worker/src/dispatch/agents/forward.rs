//! A Slack app behind Tidegate: it gets the webhook as Slack sent it, and its response reaches Slack.
//!
//! The acknowledgement of a command, which Slack would show to its person, goes through the response_url; the response to a
//! view's submission or a menu into Slack's own request, or its late form. A 2xx is one call, whatever its body: what cannot
//! be relayed is told to the person, and never sent to the app again.

use super::{Completion, late_view_response};
use crate::{
    agent_client::{AgentClient, AgentError, ForwardResult},
    routing::Webhook,
};
use serde_json::{Value, json};
use shared::{
    codec::{
        envelope::Envelope,
        slack::{Command, Inbound, Parts, first_input_block},
    },
    store::{Agent, Connection},
    types::{Destination, Outgoing},
};

const WORD: &str = "completed";
const UNHANDLED: &str = "unhandled";

/// Forwards a webhook to an app.
pub async fn forward(
    agents: &AgentClient,
    agent: &Agent,
    connection: &Connection,
    webhook: &Webhook<'_>,
) -> Result<Completion, AgentError> {
    let (envelope, inbound) = (webhook.envelope, &webhook.inbound);
    Ok(match agents.forward(agent, &connection.signing_secret, envelope).await? {
        ForwardResult::Handled(body) => match inbound {
            Inbound::Command(command) => acknowledged(command, &body),
            Inbound::Interaction(interaction) => match interaction.kind.get() {
                Some("view_submission") => submitted(envelope, body),
                Some("block_suggestion") => suggested(body),
                _ => Completion::new(WORD),
            },
            Inbound::Event(_) | Inbound::NotUnderstood => Completion::new(WORD),
        },
        ForwardResult::Unhandled => unhandled(envelope, inbound),
    })
}

/// The body that acknowledges a command is a message: JSON, or a plain text.
fn acknowledged(command: &Command<'_>, body: &[u8]) -> Completion {
    let text = String::from_utf8_lossy(body.trim_ascii());
    let message = match serde_json::from_slice(body) {
        Ok(Value::Object(message)) if message.is_empty() => return Completion::new(WORD),
        Ok(message @ Value::Object(_)) => message,
        _ if text.is_empty() => return Completion::new(WORD),
        _ => json!({ "text": text }),
    };
    Completion::with(WORD, vec![to_person(command, message)])
}

/// A message through a command's response_url.
fn to_person(command: &Command<'_>, message: Value) -> Outgoing {
    let to = match (command.channel_id.parse(), command.user_id.parse()) {
        (Ok(channel), Ok(user)) => Destination::response_url(&*command.response_url, channel, user),
        _ => Destination::ResponseUrl { url: command.response_url.to_string(), fallback: None },
    };
    Outgoing { to, message }
}

fn submitted(envelope: &Envelope, body: Vec<u8>) -> Completion {
    let response = match serde_json::from_slice::<Value>(&body) {
        Ok(response) => response,
        // Empty closes the view; so does what Slack could not read.
        Err(_) => Value::Null,
    };
    let late = late_view_response::of(&submission(envelope), &response).into_iter().collect();
    let body = if response.is_null() { Vec::new() } else { body };
    Completion::respond(WORD, body, late)
}

fn suggested(body: Vec<u8>) -> Completion {
    let readable = serde_json::from_slice::<Value>(&body).is_ok_and(|body| body.is_object());
    let body = if readable { body } else { br#"{"options":[]}"#.to_vec() };
    Completion::respond(WORD, body, Vec::new())
}

/// Nothing in the app listens for this. A person who waits is told.
fn unhandled(envelope: &Envelope, inbound: &Inbound<'_>) -> Completion {
    match inbound {
        Inbound::Command(command) => {
            let text = format!("The app does not know `{}`.", command.command);
            let message = json!({ "response_type": "ephemeral", "text": text });
            Completion::with(UNHANDLED, vec![to_person(command, message)])
        }
        Inbound::Interaction(interaction) => match interaction.kind.get() {
            Some("view_submission") => {
                let block = first_input_block(&Parts::split(envelope.media, &envelope.body));
                let response = match block {
                    Some(block) => json!({
                        "response_action": "errors",
                        "errors": { block: "The app does not take this." },
                    }),
                    None => Value::Null,
                };
                let late = late_view_response::of(&submission(envelope), &response);
                let now = match response.is_null() {
                    true => Vec::new(),
                    false => response.to_string().into_bytes(),
                };
                Completion::respond(UNHANDLED, now, late.into_iter().collect())
            }
            Some("block_suggestion") => suggested(Vec::new()),
            _ => Completion::new(UNHANDLED),
        },
        Inbound::Event(_) | Inbound::NotUnderstood => Completion::new(UNHANDLED),
    }
}

/// The payload of a view's submission, whole.
fn submission(envelope: &Envelope) -> Value {
    match Parts::split(envelope.media, &envelope.body) {
        Parts::Payload(json) => serde_json::from_str(&json).unwrap_or_default(),
        _ => Value::Null,
    }
}
