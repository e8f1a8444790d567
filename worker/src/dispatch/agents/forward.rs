//! Forwards webhooks to a Slack app behind Tidegate and relays its responses to Slack.
//!
//! The acknowledgement of a command goes to the response_url. The response to a view submission or
//! a menu goes into Slack's HTTP request, or is sent late. A webhook that the app accepted (2xx) is
//! never sent again: if its response cannot be relayed, the person gets a notice.

use super::{Completion, late_view_response};
use crate::{
    agent_client::{AgentClient, AgentError, ForwardResult},
    routing::{Webhook, response_url},
};
use serde_json::{Value, json};
use shared::{
    codec::{
        envelope::Envelope,
        slack::{Command, Inbound, Parts, first_input_block},
    },
    store::{Agent, Connection},
    types::Outgoing,
};

const COMPLETED: &str = "completed";
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
                _ => Completion::new(COMPLETED),
            },
            Inbound::Event(_) | Inbound::NotUnderstood => Completion::new(COMPLETED),
        },
        ForwardResult::Unhandled => unhandled(envelope, inbound),
    })
}

/// Returns the completion of a command. Its acknowledgement is a message: JSON or plain text.
fn acknowledged(command: &Command<'_>, body: &[u8]) -> Completion {
    let text = String::from_utf8_lossy(body.trim_ascii());
    let message = match serde_json::from_slice(body) {
        Ok(Value::Object(message)) if message.is_empty() => return Completion::new(COMPLETED),
        Ok(message @ Value::Object(_)) => message,
        _ if text.is_empty() => return Completion::new(COMPLETED),
        _ => json!({ "text": text }),
    };
    Completion::with(COMPLETED, vec![Outgoing { to: response_url(command), message }])
}

fn submitted(envelope: &Envelope, body: Vec<u8>) -> Completion {
    let response = match serde_json::from_slice::<Value>(&body) {
        Ok(response) => response,
        // An empty response closes the view; Slack could not read this one.
        Err(_) => Value::Null,
    };
    let late =
        late_view_response::for_submission(&late_view_response::submission(envelope), &response)
            .into_iter()
            .collect();
    let body = if response.is_null() { Vec::new() } else { body };
    Completion::respond(COMPLETED, body, late)
}

fn suggested(body: Vec<u8>) -> Completion {
    let readable = serde_json::from_slice::<Value>(&body).is_ok_and(|body| body.is_object());
    let body = if readable { body } else { br#"{"options":[]}"#.to_vec() };
    Completion::respond(COMPLETED, body, Vec::new())
}

/// Returns the completion of a webhook that the app does not listen for, with a notice if a person
/// waits.
fn unhandled(envelope: &Envelope, inbound: &Inbound<'_>) -> Completion {
    match inbound {
        Inbound::Command(command) => {
            let text = format!("The app does not handle `{}`.", command.command);
            let message = json!({ "response_type": "ephemeral", "text": text });
            Completion::with(UNHANDLED, vec![Outgoing { to: response_url(command), message }])
        }
        Inbound::Interaction(interaction) => match interaction.kind.get() {
            Some("view_submission") => {
                let block = first_input_block(&Parts::split(envelope.media, &envelope.body));
                let response = match block {
                    Some(block) => json!({
                        "response_action": "errors",
                        "errors": { block: "The app does not accept this form." },
                    }),
                    None => Value::Null,
                };
                let late = late_view_response::for_submission(
                    &late_view_response::submission(envelope),
                    &response,
                );
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
