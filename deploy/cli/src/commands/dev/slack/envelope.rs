//! Conversion of Socket Mode envelopes to HTTP requests, and of responses to acknowledgements.
//!
//! The payload of an envelope is the content of the HTTP request that Slack would send: the JSON of
//! an event, the form fields of a command, or the JSON of an interaction. This module does no I/O.

use serde::Deserialize;
use serde_json::{Map, Value, json, value::RawValue};
use shared::domain::MediaType;

/// Text frame of a Socket Mode connection.
#[derive(Debug)]
pub enum Frame {
    /// The connection is established. `connections` is the number of connections of the app.
    Hello { connections: u64, app: Option<String> },
    /// Slack ends the connection.
    Disconnect(Ending),
    /// A webhook.
    Envelope(Envelope),
    /// A frame of an undocumented type.
    Unknown(String),
}

/// Reason why Slack ends a connection.
#[derive(Debug, PartialEq, Eq)]
pub enum Ending {
    /// The connection must be replaced. Slack ends it within about ten seconds.
    Refresh,
    /// Socket Mode is disabled.
    LinkDisabled,
    /// The app has the maximum number of connections.
    TooMany,
}

/// Webhook received by Socket Mode.
#[derive(Debug, PartialEq, Eq)]
pub struct Envelope {
    pub id: String,
    pub kind: Kind,
    pub request: Request,
    pub accepts_response: bool,
}

/// Kind of an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Event,
    Command,
    Interaction,
}

/// HTTP request of a webhook, without its signature.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    pub media: MediaType,
    pub body: Vec<u8>,
    /// Retry number and reason.
    pub retry: Option<(u64, String)>,
}

#[derive(Deserialize)]
struct RawFrame<'a> {
    #[serde(rename = "type")]
    kind: String,
    reason: Option<String>,
    num_connections: Option<u64>,
    connection_info: Option<ConnectionInfo>,
    envelope_id: Option<String>,
    #[serde(borrow)]
    payload: Option<&'a RawValue>,
    accepts_response_payload: Option<bool>,
    retry_attempt: Option<u64>,
    retry_reason: Option<String>,
}

#[derive(Deserialize)]
struct ConnectionInfo {
    app_id: Option<String>,
}

/// Parses a frame. Returns an error if the text is not the JSON of a frame.
pub fn parse(text: &str) -> Result<Frame, serde_json::Error> {
    let raw: RawFrame<'_> = serde_json::from_str(text)?;
    let kind = match raw.kind.as_str() {
        "hello" => {
            let app = raw.connection_info.and_then(|info| info.app_id);
            let connections = raw.num_connections.unwrap_or_default();
            return Ok(Frame::Hello { connections, app });
        }
        "disconnect" => {
            return Ok(Frame::Disconnect(match raw.reason.as_deref() {
                Some("link_disabled") => Ending::LinkDisabled,
                Some("too_many_websockets") => Ending::TooMany,
                _ => Ending::Refresh,
            }));
        }
        "events_api" => Kind::Event,
        "slash_commands" => Kind::Command,
        "interactive" => Kind::Interaction,
        _ => return Ok(Frame::Unknown(raw.kind)),
    };
    let (Some(id), Some(payload)) = (raw.envelope_id, raw.payload) else {
        return Ok(Frame::Unknown(raw.kind));
    };
    let (media, body) = match kind {
        Kind::Event => (MediaType::Json, payload.get().as_bytes().to_vec()),
        Kind::Interaction => (MediaType::Form, form([("payload", payload.get())])),
        Kind::Command => {
            let fields: Map<String, Value> = serde_json::from_str(payload.get())?;
            let fields = fields.iter().map(|(name, value)| (name.as_str(), text_of(value)));
            (MediaType::Form, form(fields))
        }
    };
    let retry = raw.retry_attempt.filter(|number| *number > 0);
    let retry = retry.map(|number| (number, raw.retry_reason.unwrap_or_default()));
    Ok(Frame::Envelope(Envelope {
        id,
        kind,
        request: Request { media, body, retry },
        accepts_response: raw.accepts_response_payload.unwrap_or(false),
    }))
}

/// Returns the acknowledgement of an envelope, or `None` if the response status is not a success.
///
/// Without an acknowledgement Slack resends an event, and shows users that a command or interaction
/// failed.
pub fn acknowledge(envelope: &Envelope, status: u16, body: &str) -> Option<String> {
    if !(200..300).contains(&status) {
        return None;
    }
    let mut ack = json!({ "envelope_id": envelope.id });
    if envelope.accepts_response
        && let Ok(payload @ Value::Object(_)) = serde_json::from_str(body)
    {
        ack["payload"] = payload;
    }
    Some(ack.to_string())
}

fn form<'a, V: AsRef<str>>(fields: impl IntoIterator<Item = (&'a str, V)>) -> Vec<u8> {
    let mut form = form_urlencoded::Serializer::new(String::new());
    form.extend_pairs(fields);
    form.finish().into_bytes()
}

/// Returns the value of a form field as text.
fn text_of(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn envelope(text: &str) -> Envelope {
        match parse(text).expect("a frame") {
            Frame::Envelope(envelope) => envelope,
            other => panic!("{other:?}"),
        }
    }

    fn body(envelope: &Envelope) -> &str {
        std::str::from_utf8(&envelope.request.body).expect("text")
    }

    /// The JSON is forwarded byte for byte, so that parsing cannot change it.
    #[test]
    fn keeps_json_of_events() {
        let text = r#"{"envelope_id":"e1","type":"events_api","accepts_response_payload":false,
            "retry_attempt":2,"retry_reason":"timeout",
            "payload":{"event":{"n":1e400,"text":"\ud83d\ude00"},"n":12345678901234567890123}}"#;
        let event = envelope(text);
        let expected = r#"{"event":{"n":1e400,"text":"\ud83d\ude00"},"n":12345678901234567890123}"#;
        assert_eq!((event.kind, body(&event)), (Kind::Event, expected));
        assert_eq!(event.request.retry, Some((2, "timeout".into())));
        assert_eq!(event.request.media, MediaType::Json);
    }

    #[test]
    fn converts_commands_to_forms() {
        let text = r#"{"envelope_id":"e2","type":"slash_commands","accepts_response_payload":true,
            "payload":{"command":"/lobu","text":"a&b ü","is_enterprise_install":"false","x":null}}"#;
        let command = envelope(text);
        let expected = "command=%2Flobu&is_enterprise_install=false&text=a%26b+%C3%BC&x=";
        assert_eq!((command.kind, body(&command)), (Kind::Command, expected));
        assert_eq!((command.request.retry, command.request.media), (None, MediaType::Form));
    }

    #[test]
    fn converts_interactions_to_forms() {
        let text =
            r#"{"envelope_id":"e3","type":"interactive","payload":{"type":"block_actions"}}"#;
        let click = envelope(text);
        let expected = "payload=%7B%22type%22%3A%22block_actions%22%7D";
        assert_eq!((click.kind, body(&click)), (Kind::Interaction, expected));
    }

    #[test]
    fn acknowledges_only_success() {
        let text = r#"{"envelope_id":"e","type":"slash_commands","accepts_response_payload":true,
            "payload":{}}"#;
        let mut command = envelope(text);
        let ack = |command: &Envelope, status, body| acknowledge(command, status, body);
        assert_eq!(ack(&command, 200, "").as_deref(), Some(r#"{"envelope_id":"e"}"#));
        let with = r#"{"envelope_id":"e","payload":{"text":"hi"}}"#;
        assert_eq!(ack(&command, 200, r#"{"text":"hi"}"#).as_deref(), Some(with));
        for status in [302, 401, 404, 503] {
            assert_eq!(ack(&command, status, r#"{"text":"hi"}"#), None, "{status}");
        }
        command.accepts_response = false;
        let without = ack(&command, 200, r#"{"text":"hi"}"#);
        assert_eq!(without.as_deref(), Some(r#"{"envelope_id":"e"}"#));
    }

    #[test]
    fn parses_hello_and_disconnect() {
        let hello = r#"{"type":"hello","num_connections":2,"connection_info":{"app_id":"A1"}}"#;
        match parse(hello) {
            Ok(Frame::Hello { connections: 2, app }) => assert_eq!(app.as_deref(), Some("A1")),
            other => panic!("{other:?}"),
        }
        for (reason, ending) in [
            ("warning", Ending::Refresh),
            ("refresh_requested", Ending::Refresh),
            ("link_disabled", Ending::LinkDisabled),
            ("too_many_websockets", Ending::TooMany),
        ] {
            let text = json!({ "type": "disconnect", "reason": reason }).to_string();
            match parse(&text) {
                Ok(Frame::Disconnect(found)) => assert_eq!(found, ending, "{reason}"),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(parse(r#"{"type":"new"}"#), Ok(Frame::Unknown(_))));
        assert!(matches!(parse(r#"{"type":"events_api"}"#), Ok(Frame::Unknown(_))));
        assert!(parse("hi").is_err());
    }
}
