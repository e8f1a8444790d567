//! An app behind Tidegate: it gets the webhook as Slack sent it, and what it answers reaches Slack.
//!
//! In: a webhook and the app. Out: an outcome. The acknowledgement of a command, which Slack would show to its person, goes
//! through the `response_url`; the answer to a view's submission or a menu into Slack's own request, or its late form
//! (see `late`). Everything is handed on, what bots said as well: an app written for Slack looks after that itself, and is
//! promised that it loses nothing.

use super::{Answer, Desk, Done, Outcome, late};
use crate::{
    agent::{AgentError, forward::Taken},
    reply,
};
use serde_json::{Value, json};
use shared::{
    codec::slack::{Command, Inbound, Parts, first_input_block},
    store::{Agent, Effects},
    types::{Destination, Kind, Outgoing},
};

pub(super) async fn handle(desk: &Desk<'_>, agent: &Agent, inbound: &Inbound<'_>) -> Outcome {
    let envelope = &desk.job.envelope;
    let nobody_waits =
        || envelope.reply.as_ref().is_none_or(|window| reply::left(window).is_zero());
    if envelope.kind == Kind::Options && nobody_waits() {
        return Outcome::done("late"); // and there is no other way to say it
    }
    if let Some(outcome) = desk.settled().await {
        return outcome;
    }
    if !desk.part.is_ours() {
        return Outcome::Return;
    }
    let secret = &desk.connection.signing_secret;
    match desk.workshop.agents.forward(agent, secret, envelope).await {
        Ok(Taken::Yes(body)) => match inbound {
            Inbound::Command(command) => acknowledged(command, &body),
            Inbound::Interaction(interaction) => match interaction.kind.get() {
                Some("view_submission") => submitted(desk, body),
                Some("block_suggestion") => suggested(body),
                _ => Outcome::done("forwarded"),
            },
            Inbound::Event(_) | Inbound::NotUnderstood => Outcome::done("forwarded"),
        },
        Ok(Taken::Unhandled) => unhandled(desk, inbound),
        Err(AgentError::Away(cause)) => Outcome::Retry { cause },
        Err(AgentError::Wrong(error)) => Outcome::Fault { error },
    }
}

/// The body that acknowledges a command is a message: JSON, or a plain text.
fn acknowledged(command: &Command<'_>, body: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(body.trim_ascii());
    let message = match serde_json::from_slice(body) {
        Ok(Value::Object(message)) if message.is_empty() => return Outcome::done("forwarded"),
        Ok(message @ Value::Object(_)) => message,
        _ if text.is_empty() => return Outcome::done("forwarded"),
        _ => json!({ "text": text }),
    };
    say(command, message)
}

/// Says something through a command's `response_url`.
fn say(command: &Command<'_>, message: Value) -> Outcome {
    let to = match (command.channel_id.parse(), command.user_id.parse()) {
        (Ok(channel), Ok(user)) => Destination::response_url(&*command.response_url, channel, user),
        _ => Destination::ResponseUrl { url: command.response_url.to_string(), fallback: None },
    };
    let say = vec![Outgoing { to, message }];
    Effects { say, outcome: "forwarded", ..Effects::default() }.into()
}

fn submitted(desk: &Desk<'_>, body: Vec<u8>) -> Outcome {
    let answer = match serde_json::from_slice::<Value>(&body) {
        Ok(answer) => answer,
        Err(_) if body.trim_ascii().is_empty() => Value::Null,
        Err(_) => return Outcome::Fault { error: "the app's answer to a view is no JSON".into() },
    };
    let late = late::of(&submission(desk), &answer).into_iter().collect();
    answered(body, late)
}

fn suggested(body: Vec<u8>) -> Outcome {
    let body = if body.trim_ascii().is_empty() { br#"{"options":[]}"#.to_vec() } else { body };
    match serde_json::from_slice::<Value>(&body) {
        Ok(_) => answered(body, Vec::new()),
        Err(_) => Outcome::Fault { error: "the app's answer to a menu is no JSON".into() },
    }
}

/// Nobody in the app listens for this. A person who waits is told.
fn unhandled(desk: &Desk<'_>, inbound: &Inbound<'_>) -> Outcome {
    match inbound {
        Inbound::Command(command) => {
            let text = format!("The app does not know `{}`.", command.command);
            say(command, json!({ "response_type": "ephemeral", "text": text }))
        }
        Inbound::Interaction(interaction) if interaction.kind.get() == Some("view_submission") => {
            let envelope = &desk.job.envelope;
            let block = first_input_block(&Parts::split(envelope.media, &envelope.body));
            let answer = match block {
                Some(block) => json!({
                    "response_action": "errors", "errors": { block: "The app does not take this." },
                }),
                None => Value::Null,
            };
            let late = late::of(&submission(desk), &answer).into_iter().collect();
            let now = if answer.is_null() { Vec::new() } else { answer.to_string().into_bytes() };
            answered(now, late)
        }
        Inbound::Interaction(interaction) if interaction.kind.get() == Some("block_suggestion") => {
            suggested(Vec::new())
        }
        Inbound::NotUnderstood => super::not_understood("neither by us nor by the app behind us"),
        Inbound::Interaction(_) | Inbound::Event(_) => Outcome::done("unhandled"),
    }
}

/// The payload of a view's submission, whole.
fn submission(desk: &Desk<'_>) -> Value {
    let envelope = &desk.job.envelope;
    match Parts::split(envelope.media, &envelope.body) {
        Parts::Payload(json) => serde_json::from_str(&json).unwrap_or_default(),
        _ => Value::Null,
    }
}

fn answered(now: Vec<u8>, late: Vec<Outgoing>) -> Outcome {
    let effects = Effects { outcome: "forwarded", ..Effects::default() };
    Outcome::Done(Box::new(Done { effects, answer: Some(Answer { now: now.into(), late }) }))
}
