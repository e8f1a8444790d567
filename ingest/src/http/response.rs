//! What Slack is told: one table, in which status, body, log level and label stand together.
//!
//! In: a [`Verdict`], how a webhook's way through ingest ended. Out: an [`Answer`]. A new verdict does not compile
//! until somebody decides all four. The reasons are Slack's: an event that got no 2xx is sent again; a command
//! never is, so its user is told; above 95 % non-2xx an app is switched off for all its workspaces, so on the
//! shared route nothing that we could not help is anything but 200.

use crate::{
    directory::Away,
    webhook::{Verdict, signature::Rejected},
};
use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use bytes::Bytes;
use shared::types::Kind;
use tracing::Level;

/// What goes back, and what is said of it here.
#[derive(Debug)]
pub struct Answer {
    /// The HTTP status.
    pub status: StatusCode,
    /// What Slack gets to read.
    pub say: Say,
    /// How loudly it is logged.
    pub level: Level,
    /// The word for logs and metrics.
    pub label: &'static str,
}

/// The body of an answer.
#[derive(Debug, PartialEq, Eq)]
pub enum Say {
    /// Nothing: a body would be shown to the user of a command.
    Nothing,
    /// One word of plain text.
    Text(String),
    /// JSON: a message only the user sees, options, or what is to become of a view.
    Json(Bytes),
    /// Nothing, and please don't send it again.
    NoRetry,
    /// Nothing, and please send it again later.
    RetryLater,
}

const NOT_TAKEN: &str = r#"{"response_type":"ephemeral","text":"Sorry, this was not taken. Please try again in a moment."}"#;
const NOT_CONNECTED: &str =
    r#"{"response_type":"ephemeral","text":"This app is not connected here."}"#;
const NO_OPTIONS: &str = r#"{"options":[]}"#;
const WORKING_ON_IT: &str = concat!(
    r#"{"response_action":"update","view":{"type":"modal","title":{"type":"plain_text","text":"One moment"},"#,
    r#""blocks":[{"type":"section","text":{"type":"plain_text","text":"Working on it …"}}]}}"#
);

/// The table.
pub fn answer(verdict: &Verdict) -> Answer {
    use Say::{Json, NoRetry, Nothing, RetryLater, Text};
    let json = |text: &'static str| Json(Bytes::from_static(text.as_bytes()));
    let (status, say, level, label) = match verdict {
        Verdict::Relayed(_, _, body) if body.is_empty() => (200, Nothing, Level::INFO, "accepted"),
        Verdict::Relayed(_, _, body) => (200, Json(body.clone()), Level::INFO, "accepted"),
        Verdict::Unanswered(Kind::Options, _) => (200, json(NO_OPTIONS), Level::WARN, "accepted"),
        Verdict::Unanswered(..) => (200, json(WORKING_ON_IT), Level::WARN, "accepted"),
        Verdict::Stored(_, stored) if stored.is_duplicate() => {
            (200, Nothing, Level::INFO, "duplicate")
        }
        Verdict::Stored(..) => (200, Nothing, Level::INFO, "accepted"),
        Verdict::Challenge(challenge) => (200, Text(challenge.clone()), Level::INFO, "challenge"),
        Verdict::SslCheck => (200, Nothing, Level::INFO, "ssl_check"),
        // One body for all causes: nothing can be learnt from it.
        Verdict::Unverified(Rejected::BadSignature) => (401, Nothing, Level::WARN, "bad_signature"),
        Verdict::Unverified(Rejected::NoSignature) => (401, Nothing, Level::WARN, "no_signature"),
        Verdict::Unverified(Rejected::NoTimestamp) => (401, Nothing, Level::WARN, "no_timestamp"),
        Verdict::Unverified(Rejected::Stale { .. }) => (401, Nothing, Level::WARN, "stale"),
        Verdict::UnknownConnection => (404, Nothing, Level::INFO, "unknown_connection"),
        Verdict::Stopped(_) => (404, NoRetry, Level::INFO, "stopped"),
        Verdict::Unrouted(Kind::Command) => (200, json(NOT_CONNECTED), Level::INFO, "unrouted"),
        Verdict::Unrouted(Kind::Options) => (200, json(NO_OPTIONS), Level::INFO, "unrouted"),
        Verdict::Unrouted(_) => (200, Nothing, Level::INFO, "unrouted"),
        Verdict::SharedRouteClosed => (404, Nothing, Level::WARN, "shared_route_closed"),
        Verdict::DirectoryAway(Away) => (503, RetryLater, Level::ERROR, "directory_unavailable"),
        Verdict::NotStored(Kind::Command, _) => (200, json(NOT_TAKEN), Level::ERROR, "unavailable"),
        Verdict::NotStored(Kind::Options, _) => {
            (200, json(NO_OPTIONS), Level::ERROR, "unavailable")
        }
        Verdict::NotStored(..) => (503, RetryLater, Level::ERROR, "unavailable"),
        Verdict::SubmissionNotStored(block, _) => {
            (200, Json(view_error(block)), Level::ERROR, "unavailable")
        }
        Verdict::TooLarge => (413, Nothing, Level::WARN, "too_large"),
        Verdict::MediaType => (415, Nothing, Level::WARN, "media_type"),
        Verdict::TransferEncoding => (400, Nothing, Level::WARN, "transfer_encoding"),
        Verdict::Slow => (408, Nothing, Level::WARN, "body_timeout"),
        Verdict::Broken => (400, Nothing, Level::INFO, "body_incomplete"),
        Verdict::Overloaded => (503, RetryLater, Level::ERROR, "overloaded"),
    };
    let status = StatusCode::from_u16(status).expect("the table holds statuses only");
    Answer { status, say, level, label }
}

/// Keeps the view open, with a word at one of its inputs.
fn view_error(block: &str) -> Bytes {
    let word = "This was not taken. Please try again in a moment.";
    serde_json::json!({ "response_action": "errors", "errors": { block: word } }).to_string().into()
}

impl Answer {
    /// As HTTP.
    pub fn into_response(self) -> Response<Body> {
        let (body, name, value) = match self.say {
            Say::Nothing => (Body::empty(), None, ""),
            Say::Text(text) => (Body::from(text), Some(header::CONTENT_TYPE), "text/plain"),
            Say::Json(json) => (Body::from(json), Some(header::CONTENT_TYPE), "application/json"),
            Say::NoRetry => {
                (Body::empty(), Some(header::HeaderName::from_static("x-slack-no-retry")), "1")
            }
            Say::RetryLater => (Body::empty(), Some(header::RETRY_AFTER), "1"),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        if let Some(name) = name {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        // The body broke off, or was not read to its end: what is left of it is no next request.
        if matches!(self.status.as_u16(), 400 | 408 | 413) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::publisher::{NotStored, Stored};
    use async_nats::jetstream::publish::PublishAck;
    use std::time::Duration;

    fn row(verdict: &Verdict) -> (u16, &'static str, Level, String) {
        let Answer { status, say, level, label } = answer(verdict);
        let says = match say {
            Say::Nothing => String::new(),
            Say::Text(text) => text,
            Say::Json(json) => String::from_utf8_lossy(&json).into_owned(),
            Say::NoRetry => "no retry".into(),
            Say::RetryLater => "retry later".into(),
        };
        (status.as_u16(), label, level, says)
    }

    macro_rules! rows {
        ($($name:ident: $verdict:expr => $status:literal, $label:literal, $level:ident, $says:expr;)*) => {$(
            #[test]
            fn $name() {
                let (status, label, level, says) = row(&$verdict);
                assert_eq!((status, label, level), ($status, $label, Level::$level));
                assert_eq!(says, $says);
            }
        )*};
    }

    fn stored(duplicate: bool) -> Stored {
        let ack = serde_json::json!({ "stream": "SLACK_IN", "seq": 1, "duplicate": duplicate });
        serde_json::from_value::<PublishAck>(ack).expect("what JetStream answers").into()
    }

    fn full() -> NotStored {
        NotStored::Full
    }

    rows! {
        a_signature_that_is_wrong_is_401: Verdict::Unverified(Rejected::BadSignature) => 401, "bad_signature", WARN, "";
        a_signature_that_is_missing_is_401: Verdict::Unverified(Rejected::NoSignature) => 401, "no_signature", WARN, "";
        a_timestamp_that_is_missing_is_401: Verdict::Unverified(Rejected::NoTimestamp) => 401, "no_timestamp", WARN, "";
        a_webhook_of_another_time_is_401:
            Verdict::Unverified(Rejected::Stale { skew: Duration::MAX }) => 401, "stale", WARN, "";
        an_unknown_connection_is_404: Verdict::UnknownConnection => 404, "unknown_connection", INFO, "";
        a_stopped_connection_is_404_and_not_to_be_retried:
            Verdict::Stopped(Kind::Event) => 404, "stopped", INFO, "no retry";
        an_unrouted_event_is_200: Verdict::Unrouted(Kind::Event) => 200, "unrouted", INFO, "";
        an_unrouted_commands_user_is_told: Verdict::Unrouted(Kind::Command) => 200, "unrouted", INFO, NOT_CONNECTED;
        an_unrouted_menu_is_empty: Verdict::Unrouted(Kind::Options) => 200, "unrouted", INFO, NO_OPTIONS;
        a_shared_route_without_secrets_is_404: Verdict::SharedRouteClosed => 404, "shared_route_closed", WARN, "";
        a_challenge_is_echoed: Verdict::Challenge("c".into()) => 200, "challenge", INFO, "c";
        an_ssl_check_is_200: Verdict::SslCheck => 200, "ssl_check", INFO, "";
        what_is_stored_is_200: Verdict::Stored(Kind::Command, stored(false)) => 200, "accepted", INFO, "";
        what_is_not_understood_is_stored_and_200:
            Verdict::Stored(Kind::Unknown, stored(false)) => 200, "accepted", INFO, "";
        a_duplicate_is_200: Verdict::Stored(Kind::Event, stored(true)) => 200, "duplicate", INFO, "";
        an_answer_in_time_is_relayed: Verdict::Relayed(Kind::Options, stored(false), Bytes::from_static(b"{}"))
            => 200, "accepted", INFO, "{}";
        an_empty_answer_closes_the_view: Verdict::Relayed(Kind::Interaction, stored(false), Bytes::new())
            => 200, "accepted", INFO, "";
        a_submission_without_an_answer_shows_that_it_is_worked_on:
            Verdict::Unanswered(Kind::Interaction, stored(false)) => 200, "accepted", WARN, WORKING_ON_IT;
        a_menu_without_an_answer_is_empty:
            Verdict::Unanswered(Kind::Options, stored(false)) => 200, "accepted", WARN, NO_OPTIONS;
        an_event_that_is_not_stored_is_503: Verdict::NotStored(Kind::Event, full()) => 503, "unavailable", ERROR, "retry later";
        an_action_that_is_not_stored_is_503:
            Verdict::NotStored(Kind::Interaction, full()) => 503, "unavailable", ERROR, "retry later";
        a_command_that_is_not_stored_tells_its_user:
            Verdict::NotStored(Kind::Command, full()) => 200, "unavailable", ERROR, NOT_TAKEN;
        a_menu_that_is_not_stored_is_empty:
            Verdict::NotStored(Kind::Options, full()) => 200, "unavailable", ERROR, NO_OPTIONS;
        a_submission_that_is_not_stored_says_so_at_its_input: Verdict::SubmissionNotStored("b".into(), full())
            => 200, "unavailable", ERROR,
            r#"{"errors":{"b":"This was not taken. Please try again in a moment."},"response_action":"errors"}"#;
        a_directory_that_is_away_is_503: Verdict::DirectoryAway(Away) => 503, "directory_unavailable", ERROR, "retry later";
        what_is_too_large_is_413: Verdict::TooLarge => 413, "too_large", WARN, "";
        another_media_type_is_415: Verdict::MediaType => 415, "media_type", WARN, "";
        a_transfer_encoding_is_400: Verdict::TransferEncoding => 400, "transfer_encoding", WARN, "";
        a_body_that_is_slow_is_408: Verdict::Slow => 408, "body_timeout", WARN, "";
        a_body_that_breaks_off_is_400: Verdict::Broken => 400, "body_incomplete", INFO, "";
        too_many_at_once_are_503: Verdict::Overloaded => 503, "overloaded", ERROR, "retry later";
    }
}
