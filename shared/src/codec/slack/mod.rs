//! Lenient parser for Slack's webhooks.
//!
//! Ingest and worker use it. It reads only fields that Tidegate uses, with the lenient types of
//! `loose`, so that an unknown type, a new field or an odd number never makes a webhook unreadable.
//! Results borrow from the body. Shapes follow docs.slack.dev (apis/events-api,
//! interactivity/implementing-slash-commands, reference/interaction-payloads). Parsing has two
//! steps because the JSON of an interaction is percent-encoded in a form field: [`Parts::split`]
//! removes the outer encoding, [`Parts::read`] parses the content.

mod events;
mod interactions;

pub use events::{AssistantThread, Authorization, Event, EventBody, Item, Metadata, Noted};
pub use interactions::{Action, Container, Interaction, Team, User, View};

use super::loose::Object;
use serde::Deserialize;
use std::borrow::Cow;

/// Media type of a webhook's body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Media {
    /// `application/json`: events.
    Json,
    /// `application/x-www-form-urlencoded`: commands and interactions.
    Form,
}

impl Media {
    /// Parses a Content-Type header. Parameters such as `charset` are ignored.
    pub fn from_content_type(header: &str) -> Option<Self> {
        let essence = header.split(';').next().unwrap_or_default().trim();
        [Media::Json, Media::Form].into_iter().find(|m| essence.eq_ignore_ascii_case(m.as_str()))
    }

    /// Returns the header value.
    pub fn as_str(self) -> &'static str {
        match self {
            Media::Json => "application/json",
            Media::Form => "application/x-www-form-urlencoded",
        }
    }
}

/// Body without its outer encoding.
#[derive(Debug)]
pub enum Parts<'a> {
    /// `ssl_check=1`: Slack checks the certificate. Other fields are not read.
    SslCheck,
    /// JSON body.
    Json(&'a [u8]),
    /// JSON of an interaction, from its form field.
    Payload(Cow<'a, str>),
    /// Fields of a slash command.
    Command(Box<Command<'a>>),
    /// Any other form.
    OtherForm,
}

/// Parsed webhook.
#[derive(Debug)]
pub enum Inbound<'a> {
    /// Events API, including `url_verification` and `app_rate_limited`.
    Event(Box<EventBody<'a>>),
    /// Slash command.
    Command(Box<Command<'a>>),
    /// Click, shortcut, view or options load.
    Interaction(Box<Interaction<'a>>),
    /// Not JSON, or an unknown form.
    NotUnderstood,
}

impl<'a> Parts<'a> {
    /// Removes the outer encoding. Never fails.
    pub fn split(media: Media, body: &'a [u8]) -> Self {
        match media {
            Media::Json => Parts::Json(body),
            Media::Form => Self::split_form(body),
        }
    }

    fn split_form(body: &'a [u8]) -> Self {
        let mut payload = None;
        let mut command = Command::default();
        for (name, value) in form_urlencoded::parse(body) {
            let field = match &*name {
                "ssl_check" if value == "1" => return Parts::SslCheck,
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
                "user_id" => &mut command.user_id,
                "api_app_id" => &mut command.api_app_id,
                _ => continue,
            };
            *field = value;
        }
        match payload {
            Some(json) => Parts::Payload(json),
            None if !command.command.is_empty() => Parts::Command(Box::new(command)),
            None => Parts::OtherForm,
        }
    }

    /// Parses the content.
    pub fn read(&self) -> Inbound<'_> {
        match self {
            // A derived reader accepts a list for a struct. `Object` accepts only an object.
            Parts::Json(bytes) => match serde_json::from_slice(bytes) {
                Ok(Object(Some(event))) => Inbound::Event(event),
                _ => Inbound::NotUnderstood,
            },
            Parts::Payload(json) => match serde_json::from_str(json) {
                Ok(Object(Some(interaction))) => Inbound::Interaction(interaction),
                _ => Inbound::NotUnderstood,
            },
            Parts::Command(command) => Inbound::Command(command.clone()),
            Parts::SslCheck | Parts::OtherForm => Inbound::NotUnderstood,
        }
    }
}

/// Returns the `block_id` of a view's first input block, where Slack can show an error to the user.
pub fn first_input_block(parts: &Parts<'_>) -> Option<String> {
    #[derive(Default, Deserialize)]
    #[serde(default)]
    struct Block {
        r#type: String,
        block_id: String,
    }
    #[derive(Deserialize)]
    struct View {
        blocks: Vec<Block>,
    }
    #[derive(Deserialize)]
    struct Submission {
        r#type: String,
        view: View,
    }
    let Parts::Payload(json) = parts else { return None };
    let submission: Submission = serde_json::from_str(json).ok()?;
    if submission.r#type != "view_submission" {
        return None;
    }
    submission
        .view
        .blocks
        .into_iter()
        .find(|block| block.r#type == "input")
        .map(|block| block.block_id)
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
    pub user_id: Cow<'a, str>,
    pub api_app_id: Cow<'a, str>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::loose::Number;

    #[test]
    fn ignores_media_type_parameters() {
        let of = Media::from_content_type;
        assert_eq!(of("application/json; charset=utf-8"), Some(Media::Json));
        assert_eq!(of("Application/X-WWW-Form-Urlencoded"), Some(Media::Form));
        assert_eq!(of("application/jsonp"), None);
        assert_eq!(of(""), None);
    }

    #[test]
    fn prefers_ssl_check_to_payload() {
        let body = b"payload=%7B%7D&command=%2Flobu&ssl_check=1";
        assert!(matches!(Parts::split(Media::Form, body), Parts::SslCheck));
        let body = b"ssl_check=11&command=%2Flobu";
        assert!(matches!(Parts::split(Media::Form, body), Parts::Command(_)));
    }

    #[test]
    fn reads_rate_limit_notices() {
        let body = br#"{"type":"app_rate_limited","minute_rate_limited":1518467820}"#;
        let parts = Parts::split(Media::Json, body);
        let Inbound::Event(event) = parts.read() else { panic!("not an event") };
        assert_eq!(event.minute_rate_limited, Number(Some(1518467820)));
    }

    #[test]
    fn reports_invalid_json_as_not_understood() {
        for body in [&b""[..], b"{", b"\xff", b"[1]", &[b'['; 4096]] {
            assert!(matches!(Parts::split(Media::Json, body).read(), Inbound::NotUnderstood));
        }
    }
}
