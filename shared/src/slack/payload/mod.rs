//! Lenient parser for Slack's webhooks.
//!
//! Ingest and worker use it. JSON is repaired first. Only fields that Tidegate uses are read, with
//! the lenient types of `lenient`, so that an unknown type, a new field, an odd number or a deeply
//! nested value never makes a webhook unreadable. Results borrow from the body. Shapes follow
//! docs.slack.dev (apis/events-api, interactivity/implementing-slash-commands,
//! reference/interaction-payloads). Parsing has two steps because the JSON of an interaction is
//! percent-encoded in a form field: [`BodyParts::split`] removes the outer encoding,
//! [`BodyParts::read`] parses the content.

mod events;
mod installation;
mod interactions;

pub use events::{
    AssistantThread, Authorization, BotProfile, Event, EventBody, Item, Metadata, TidegateMetadata,
};
pub use installation::Installation;
pub use interactions::{Action, Container, Interaction, SyncResponseKind, Team, User, View};

use crate::{
    domain::MediaType,
    slack::{lenient::Object, repair},
};
use serde_json::Value;
use std::borrow::Cow;

/// Body without its outer encoding.
#[derive(Debug)]
pub enum BodyParts<'a> {
    /// `ssl_check=1`: Slack checks the certificate. Other fields are not read.
    SslCheck,
    /// JSON body.
    Json(Cow<'a, str>),
    /// JSON of an interaction, from its form field.
    Payload(Cow<'a, str>),
    /// Fields of a slash command.
    Command(Box<Command<'a>>),
    /// Any other form.
    OtherForm,
}

/// Parsed webhook.
#[derive(Debug)]
pub enum InboundPayload<'a> {
    /// Events API, including `url_verification` and `app_rate_limited`.
    Event(Box<EventBody<'a>>),
    /// Slash command.
    Command(Box<Command<'a>>),
    /// Click, shortcut, view or options load.
    Interaction(Box<Interaction<'a>>),
    /// Not JSON, or an unknown form.
    Unparsable,
}

impl<'a> BodyParts<'a> {
    /// Removes the outer encoding. Never fails.
    pub fn split(media: MediaType, body: &'a [u8]) -> Self {
        match media {
            MediaType::Json => BodyParts::Json(repair(body)),
            MediaType::Form => Self::split_form(body),
        }
    }

    fn split_form(body: &'a [u8]) -> Self {
        let mut payload = None;
        let mut command = Command::default();
        for (name, value) in form_urlencoded::parse(body) {
            let field = match &*name {
                "ssl_check" if value == "1" => return BodyParts::SslCheck,
                "payload" => {
                    payload = Some(value);
                    continue;
                }
                "command" => &mut command.command,
                "text" => &mut command.text,
                "trigger_id" => &mut command.trigger_id,
                "response_url" => &mut command.response_url,
                "team_id" => &mut command.team_id,
                "enterprise_id" => &mut command.enterprise_id,
                "is_enterprise_install" => &mut command.is_enterprise_install,
                "channel_id" => &mut command.channel_id,
                "channel_name" => &mut command.channel_name,
                "user_id" => &mut command.user_id,
                "api_app_id" => &mut command.api_app_id,
                _ => continue,
            };
            *field = value;
        }
        match payload {
            Some(Cow::Borrowed(json)) => BodyParts::Payload(repair(json.as_bytes())),
            Some(Cow::Owned(json)) => {
                let repaired = match repair(json.as_bytes()) {
                    Cow::Borrowed(same) if same.len() == json.len() => None,
                    repaired => Some(repaired.into_owned()),
                };
                BodyParts::Payload(repaired.unwrap_or(json).into())
            }
            None if !command.command.is_empty() => BodyParts::Command(Box::new(command)),
            None => BodyParts::OtherForm,
        }
    }

    /// Parses the content.
    pub fn read(&self) -> InboundPayload<'_> {
        match self {
            BodyParts::Json(json) => match serde_json::from_str(json) {
                Ok(Object(Some(event))) => InboundPayload::Event(event),
                _ => InboundPayload::Unparsable,
            },
            BodyParts::Payload(json) => match serde_json::from_str(json) {
                Ok(Object(Some(interaction))) => InboundPayload::Interaction(interaction),
                _ => InboundPayload::Unparsable,
            },
            BodyParts::Command(command) => InboundPayload::Command(command.clone()),
            BodyParts::SslCheck | BodyParts::OtherForm => InboundPayload::Unparsable,
        }
    }
}

/// Returns the `block_id` of a view's first input block, where Slack can show an error to the user.
pub fn first_input_block(parts: &BodyParts<'_>) -> Option<String> {
    let BodyParts::Payload(json) = parts else { return None };
    let submission: Value = serde_json::from_str(json).ok()?;
    if submission["type"] != "view_submission" {
        return None;
    }
    let mut blocks = submission["view"]["blocks"].as_array()?.iter();
    let input = blocks.find(|block| block["type"] == "input")?;
    input["block_id"].as_str().map(str::to_owned)
}

/// Returns the name of a legacy dialog's first element, where Slack can show an error to the user.
pub fn first_dialog_element(parts: &BodyParts<'_>) -> Option<String> {
    let BodyParts::Payload(json) = parts else { return None };
    let submission: Value = serde_json::from_str(json).ok()?;
    if submission["type"] != "dialog_submission" {
        return None;
    }
    submission["submission"].as_object()?.keys().next().cloned()
}

/// Slash command. Absent fields are empty.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)] // Slack's names: docs.slack.dev/interactivity/implementing-slash-commands
pub struct Command<'a> {
    pub command: Cow<'a, str>,
    pub text: Cow<'a, str>,
    pub trigger_id: Cow<'a, str>,
    pub response_url: Cow<'a, str>,
    pub team_id: Cow<'a, str>,
    pub enterprise_id: Cow<'a, str>,
    pub is_enterprise_install: Cow<'a, str>,
    pub channel_id: Cow<'a, str>,
    /// `directmessage`, `privategroup`, or the channel's name.
    pub channel_name: Cow<'a, str>,
    pub user_id: Cow<'a, str>,
    pub api_app_id: Cow<'a, str>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slack::lenient::Number;

    #[test]
    fn prefers_ssl_check_to_payload() {
        let body = b"payload=%7B%7D&command=%2Flobu&ssl_check=1";
        assert!(matches!(BodyParts::split(MediaType::Form, body), BodyParts::SslCheck));
        let body = b"ssl_check=11&command=%2Flobu";
        assert!(matches!(BodyParts::split(MediaType::Form, body), BodyParts::Command(_)));
    }

    #[test]
    fn reads_rate_limit_notices() {
        let body = br#"{"type":"app_rate_limited","minute_rate_limited":1518467820}"#;
        let parts = BodyParts::split(MediaType::Json, body);
        let InboundPayload::Event(event) = parts.read() else { panic!("not an event") };
        assert_eq!(event.minute_rate_limited, Number(Some(1518467820)));
    }

    #[test]
    fn reports_invalid_json() {
        for body in [&b""[..], b"{", b"\xff", b"[1]", b"[{}]", &[b'['; 4096]] {
            assert!(matches!(
                BodyParts::split(MediaType::Json, body).read(),
                InboundPayload::Unparsable
            ));
        }
    }

    #[test]
    fn keeps_fields_beside_bad_one() {
        let body = b"\xef\xbb\xbf{\"type\":\"event_callback\",\"event_id\":null,\"team_id\":7,\
            \"event_id\":\"Ev1\",\"event\":{\"text\":\"cut \\ud83d\",\"channel\":\"C\xff\",\"ts\":\"1.1\",\
            \"user\":null,\"blocks\":null}}";
        let parts = BodyParts::split(MediaType::Json, body);
        let InboundPayload::Event(body) = parts.read() else { panic!("not an event") };
        let event = body.event.0.as_ref().expect("an inner event");
        assert_eq!((body.event_id.get(), body.team_id.get()), (Some("Ev1"), None));
        assert_eq!((event.text.get(), event.ts.get()), (Some("cut \u{fffd}"), Some("1.1")));
        assert_eq!((event.channel.get(), event.user.get()), (Some("C\u{fffd}"), None));
        let payload =
            br#"payload={"type":"shortcut","trigger_id":"1","trigger_id":"2","x":"\ude00"}"#;
        let parts = BodyParts::split(MediaType::Form, payload);
        let InboundPayload::Interaction(interaction) = parts.read() else {
            panic!("no interaction")
        };
        assert_eq!(interaction.trigger_id.get(), Some("2"));
    }

    /// In every field that is read. Checks the fields after it.
    #[test]
    fn drops_only_unreadable_values() {
        let deep = format!("{}1{}", "[".repeat(500), "]".repeat(500));
        let wide = format!("{}1{}", r#"{"message":"#.repeat(500), "}".repeat(500));
        for odd in ["1e999", "-1E400", &"9".repeat(400), &deep, &wide] {
            for name in ["event_time", "authorizations", "challenge", "new_field"] {
                let json = format!(
                    r#"{{"{name}":{odd},"type":"event_callback","team_id":"T1","event_id":"Ev1",
                        "event":{{"user":{odd},"item":{odd},"previous_message":{odd},"new":{odd},
                        "type":"message","channel":"C1","ts":"1.1"}}}}"#
                );
                let parts = BodyParts::split(MediaType::Json, json.as_bytes());
                let InboundPayload::Event(body) = parts.read() else { panic!("{json}") };
                let event = body.event.0.as_ref().expect("an inner event");
                assert_eq!(
                    (body.kind.get(), body.team_id.get()),
                    (Some("event_callback"), Some("T1"))
                );
                assert_eq!((event.channel.get(), event.ts.get()), (Some("C1"), Some("1.1")));
                assert_eq!((event.user.get(), body.event_time.0), (None, None), "{odd}");
            }
            let json = format!(r#"{{"view":{odd},"type":"block_actions","trigger_id":"1"}}"#);
            let form = form_urlencoded::Serializer::new(String::new())
                .append_pair("payload", &json)
                .finish();
            let parts = BodyParts::split(MediaType::Form, form.as_bytes());
            let InboundPayload::Interaction(click) = parts.read() else { panic!("{json}") };
            assert_eq!(
                (click.kind.get(), click.trigger_id.get()),
                (Some("block_actions"), Some("1"))
            );
        }
    }
}
