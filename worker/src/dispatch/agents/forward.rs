//! Mode `forward`: forwards webhooks to a Slack app behind Tidegate and relays its responses.
//!
//! The response to a command is sent to its `response_url`. The response to a view submission, a
//! menu or a legacy interaction becomes the sync response, or is sent late. A webhook that the app
//! accepted (2xx) is never sent again: if its response cannot be relayed, the author gets a notice.

use super::{Completion, late_view_response, message_policy::restrict};
use crate::{
    agent_client::{AgentClient, AgentError, ForwardResult},
    routing::{Webhook, escape, notice, response_url},
};
use serde_json::{Value, json};
use shared::{
    domain::{Destination, OutgoingMessage},
    slack::repair,
    slack::{BodyParts, Command, InboundPayload, Interaction, SyncResponseKind, first_input_block},
    store::{Agent, Connection},
    stream::Envelope,
};

const COMPLETED: &str = "completed";
const UNHANDLED: &str = "unhandled";
const UNREADABLE: &str = "The app has handled this, but its answer can't be shown.";

/// Forwards a webhook to an app. Returns the messages and the sync response that follow.
pub async fn forward(
    agents: &AgentClient,
    agent: &Agent,
    connection: &Connection,
    webhook: &Webhook<'_>,
) -> Result<Completion, AgentError> {
    let mut completion = match agents.forward(agent, connection, webhook.envelope).await? {
        ForwardResult::Handled(body) => complete_handled(webhook, &body),
        // Invalid JSON, for which the author gets the notice `UNREADABLE`.
        ForwardResult::HandledUnreadably => complete_handled(webhook, b"{"),
        ForwardResult::Unacknowledged => complete_unacknowledged(webhook),
        ForwardResult::Unhandled => complete_unhandled(webhook),
    };
    let late = completion.response.iter_mut().flat_map(|(_, late)| late);
    for sent in completion.messages.iter_mut().chain(late) {
        if matches!(sent.to, Destination::ResponseUrl { .. }) {
            restrict(&mut sent.message, agent, connection);
        }
    }
    Ok(completion)
}

/// Returns the completion of a webhook that the app accepted with this response.
pub(super) fn complete_handled(webhook: &Webhook<'_>, body: &[u8]) -> Completion {
    let envelope = webhook.envelope;
    match &webhook.inbound {
        InboundPayload::Command(command) => complete_command(command, body),
        InboundPayload::Interaction(interaction) => match interaction.sync_response_kind() {
            Some(SyncResponseKind::View) => complete_submission(envelope, body),
            Some(SyncResponseKind::Options) => complete_options(body),
            Some(SyncResponseKind::Dialog) => complete_dialog(webhook, body),
            Some(SyncResponseKind::Message) => complete_click(interaction, body),
            None => Completion::new(COMPLETED),
        },
        InboundPayload::Event(_) | InboundPayload::Unparsable => Completion::new(COMPLETED),
    }
}

/// Parses a response as JSON. `None` if it is no object, or an empty one.
fn parse_object(body: &[u8]) -> Option<Value> {
    let answer: Value = serde_json::from_str(&repair(body)).ok()?;
    answer.as_object().is_some_and(|fields| !fields.is_empty()).then_some(answer)
}

/// Returns the completion of a command. The response is a message.
fn complete_command(command: &Command<'_>, body: &[u8]) -> Completion {
    let message = parse_message(body);
    let out = message.map(|message| OutgoingMessage { to: response_url(command), message });
    Completion::with_messages(COMPLETED, out.into_iter().collect())
}

/// Returns the message in a response: JSON, or plain text.
fn parse_message(body: &[u8]) -> Option<Value> {
    let text = String::from_utf8_lossy(body);
    let text = text.trim_start_matches('\u{feff}').trim();
    match parse_object(body) {
        Some(message) => Some(message),
        None if text.is_empty()
            || serde_json::from_str::<Value>(text).is_ok_and(is_empty_answer) =>
        {
            None
        }
        None if text.starts_with(['{', '[']) => {
            Some(json!({ "response_type": "ephemeral", "text": UNREADABLE }))
        }
        None => Some(json!({ "text": text })),
    }
}

fn is_empty_answer(answer: Value) -> bool {
    answer.is_null() || answer == json!({}) || answer == json!([])
}

/// Returns the completion of a view submission. A response that is no JSON object closes the view,
/// like an empty one.
fn complete_submission(envelope: &Envelope, body: &[u8]) -> Completion {
    let response = parse_object(body);
    let submission = late_view_response::parse_submission(envelope);
    let late = late_view_response::build(&submission, response.as_ref().unwrap_or(&Value::Null));
    let now = response.map(|response| response.to_string()).unwrap_or_default();
    Completion::with_response(COMPLETED, now, late.into_iter().collect())
}

fn complete_options(body: &[u8]) -> Completion {
    let options = parse_object(body).unwrap_or_else(|| json!({ "options": [] }));
    Completion::with_response(COMPLETED, options.to_string(), Vec::new())
}

/// Returns the completion of a click on a legacy message. Slack replaces the message by a sync
/// response, but by a message to the `response_url` only with `replace_original`.
fn complete_click(interaction: &Interaction<'_>, body: &[u8]) -> Completion {
    let Some(message) = parse_message(body) else {
        return Completion::with_response(COMPLETED, "", Vec::new());
    };
    let mut late = message.clone();
    if late["replace_original"].is_null() && late["delete_original"].is_null() {
        late["replace_original"] = (message["text"] != UNREADABLE).into();
    }
    let url = interaction.response_url.get().map(str::to_owned);
    let to = url.map(|url| Destination::ResponseUrl { url, fallback: None });
    let late = to.map(|to| OutgoingMessage { to, message: late });
    Completion::with_response(COMPLETED, message.to_string(), late.into_iter().collect())
}

/// Returns the completion of a legacy dialog. Without errors the dialog closes. Late errors become
/// a notice, since the dialog is already closed.
fn complete_dialog(webhook: &Webhook<'_>, body: &[u8]) -> Completion {
    let response = parse_object(body).unwrap_or_default();
    let errors = response["errors"].as_array().into_iter().flatten();
    let errors: Vec<&str> = errors.filter_map(|error| error["error"].as_str()).collect();
    if errors.is_empty() {
        return Completion::with_response(COMPLETED, "", Vec::new());
    }
    let text = format!("The app did not accept the form: {}", escape(&errors.join("; ")));
    let late = notice(webhook, None, &text).into_iter().collect();
    Completion::with_response(COMPLETED, response.to_string(), late)
}

/// Returns the completion of a webhook that the app did not acknowledge in time, but may have
/// handled. The author of a command gets a notice, as from Slack.
fn complete_unacknowledged(webhook: &Webhook<'_>) -> Completion {
    let InboundPayload::Command(command) = &webhook.inbound else {
        return complete_handled(webhook, b"");
    };
    let text = format!("The app did not acknowledge `{}` in time.", escape(&command.command));
    let message = json!({ "response_type": "ephemeral", "text": text });
    let out = OutgoingMessage { to: response_url(command), message };
    Completion::with_messages(COMPLETED, vec![out])
}

/// Returns the completion of a webhook for which the app has no listener. Includes a notice if the
/// author waits for a response.
fn complete_unhandled(webhook: &Webhook<'_>) -> Completion {
    let envelope = webhook.envelope;
    match &webhook.inbound {
        InboundPayload::Command(command) => {
            let text = format!("The app does not handle `{}`.", escape(&command.command));
            let message = json!({ "response_type": "ephemeral", "text": text });
            Completion::with_messages(
                UNHANDLED,
                vec![OutgoingMessage { to: response_url(command), message }],
            )
        }
        InboundPayload::Interaction(interaction) => match interaction.sync_response_kind() {
            Some(SyncResponseKind::View) => {
                let block = first_input_block(&BodyParts::split(envelope.media, &envelope.body));
                let response = match block {
                    Some(block) => json!({
                        "response_action": "errors",
                        "errors": { block: "The app does not accept this form." },
                    }),
                    None => Value::Null,
                };
                let late = late_view_response::build(
                    &late_view_response::parse_submission(envelope),
                    &response,
                );
                let now = match response.is_null() {
                    true => Vec::new(),
                    false => response.to_string().into_bytes(),
                };
                Completion::with_response(UNHANDLED, now, late.into_iter().collect())
            }
            Some(SyncResponseKind::Options) => complete_options(b""),
            Some(SyncResponseKind::Dialog) => {
                let notice = notice(webhook, None, "The app does not accept this form.");
                let messages = notice.into_iter().collect();
                Completion { messages, ..Completion::with_response(UNHANDLED, "", Vec::new()) }
            }
            Some(SyncResponseKind::Message) => Completion::with_response(UNHANDLED, "", Vec::new()),
            None => Completion::new(UNHANDLED),
        },
        InboundPayload::Event(_) | InboundPayload::Unparsable => Completion::new(UNHANDLED),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledgement(body: &[u8]) -> Option<Value> {
        complete_command(&Command::default(), body).messages.pop().map(|sent| sent.message)
    }

    #[test]
    fn shows_no_raw_json() {
        for nothing in [&b""[..], b" \n", b"{}", b"[]", b"null", b"\xef\xbb\xbf"] {
            assert_eq!(acknowledgement(nothing), None, "{nothing:?}");
        }
        for broken in [&b"{\"text\": \"hi"[..], b"[{]", b"{'text': 'hi'}"] {
            let shown = acknowledgement(broken).expect("a notice");
            assert_eq!(shown["text"], UNREADABLE, "{broken:?}");
        }
        let cut = acknowledgement(b"{\"text\":\"cut \\ud83d\"}").expect("a message");
        assert_eq!(cut["text"], "cut \u{fffd}");
        let odd =
            format!("{{\"n\":1e999,\"x\":{}{},\"text\":\"hi\"}}", "[".repeat(500), "]".repeat(500));
        assert_eq!(acknowledgement(odd.as_bytes()).expect("a message")["text"], "hi");
        for plain in ["done", "1e999", r"C:\udd00", "a [b"] {
            let shown = acknowledgement(format!(" {plain} ").as_bytes()).expect("a message");
            assert_eq!(shown["text"], plain);
        }
    }

    fn click() -> Interaction<'static> {
        let mut click = Interaction::default();
        click.response_url.0 = Some("https://hooks.slack.com/actions/T1/1/x".into());
        click
    }

    /// Returns the sync response and the late message.
    fn answer(body: &[u8]) -> (Value, Option<Value>) {
        let (now, mut late) = complete_click(&click(), body).response.expect("a response");
        let now = serde_json::from_slice(&now).unwrap_or_default();
        (now, late.pop().map(|out| out.message))
    }

    #[test]
    fn replaces_clicked_message() {
        let replaced = json!({ "text": "done", "replace_original": true });
        let (now, late) = answer(br#"{"text":"done"}"#);
        assert_eq!((now, late), (json!({ "text": "done" }), Some(replaced.clone())));
        assert_eq!(answer(b"done").1, Some(replaced));
        for kept in [r#"{"replace_original":false,"text":"x"}"#, r#"{"delete_original":true}"#] {
            let message: Value = serde_json::from_str(kept).expect("JSON");
            assert_eq!(answer(kept.as_bytes()), (message.clone(), Some(message)));
        }
        for empty in [&b""[..], b" ", b"{}"] {
            assert_eq!(answer(empty), (Value::Null, None));
        }
    }
}
