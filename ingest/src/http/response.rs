//! Responses to Slack, as one table: status, body, log level and outcome of each verdict.
//!
//! Slack resends an event that gets no 2xx. It never resends a command, so a command's user gets an
//! error message. Above 95 % non-2xx Slack disables an app in all workspaces, so the shared route
//! answers 200 unless the failure is Tidegate's or the sender's.

use crate::webhook::{Verdict, signature::SignatureError};
use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Response, StatusCode, header},
};
use bytes::Bytes;
use shared::types::Kind;
use tracing::Level;

/// Response to a webhook.
#[derive(Debug)]
pub struct HttpResponse {
    /// HTTP status.
    pub status: StatusCode,
    /// Body, with the header that belongs to it.
    pub body: ResponseBody,
    /// Level of the log line.
    pub level: Level,
    /// Label in logs and metrics.
    pub outcome: &'static str,
}

/// Body of a response.
#[derive(Debug, PartialEq, Eq)]
pub enum ResponseBody {
    /// No body: Slack would show it to the user of a command.
    Empty,
    /// Plain text.
    Text(String),
    /// JSON: an ephemeral message, options, or an update of a view.
    Json(Bytes),
    /// No body, and the header that stops Slack's retries.
    NoRetry,
    /// No body, and a `Retry-After` header.
    RetryLater,
}

const NOT_STORED: &str = concat!(
    r#"{"response_type":"ephemeral","#,
    r#""text":"Sorry, this was not accepted. Please try again in a moment."}"#
);
const NOT_CONNECTED: &str =
    r#"{"response_type":"ephemeral","text":"This app is not connected here."}"#;
const NO_OPTIONS: &str = r#"{"options":[]}"#;
const WORKING_ON_IT: &str = concat!(
    r#"{"response_action":"update","view":{"type":"modal","#,
    r#""title":{"type":"plain_text","text":"One moment"},"#,
    r#""blocks":[{"type":"section","text":{"type":"plain_text","text":"Working on it …"}}]}}"#
);
/// Error at an input block of a view.
const SUBMISSION_NOT_STORED: &str = "This was not accepted. Please try again in a moment.";

impl HttpResponse {
    /// Creates the response to a verdict.
    pub fn new(verdict: &Verdict) -> Self {
        use ResponseBody::{Empty, Json, NoRetry, RetryLater, Text};
        use SignatureError::{BadSignature, NoSignature, NoTimestamp, Stale};
        let json = |text: &'static str| Json(Bytes::from_static(text.as_bytes()));
        let (status, body, level, outcome) = match verdict {
            Verdict::Relayed(_, _, body) if body.is_empty() => {
                (200, Empty, Level::INFO, "accepted")
            }
            Verdict::Relayed(_, _, body) => (200, Json(body.clone()), Level::INFO, "accepted"),
            Verdict::Unanswered(Kind::Options, _) => {
                (200, json(NO_OPTIONS), Level::WARN, "accepted")
            }
            Verdict::Unanswered(..) => (200, json(WORKING_ON_IT), Level::WARN, "accepted"),
            Verdict::Stored(_, stored) if stored.is_duplicate() => {
                (200, Empty, Level::INFO, "duplicate")
            }
            Verdict::Stored(..) => (200, Empty, Level::INFO, "accepted"),
            Verdict::Challenge(text) => (200, Text(text.clone()), Level::INFO, "challenge"),
            Verdict::SslCheck => (200, Empty, Level::INFO, "ssl_check"),
            // The same response for all causes, so that a forger learns nothing.
            Verdict::Unverified(BadSignature) => (401, Empty, Level::WARN, "bad_signature"),
            Verdict::Unverified(NoSignature) => (401, Empty, Level::WARN, "no_signature"),
            Verdict::Unverified(NoTimestamp) => (401, Empty, Level::WARN, "no_timestamp"),
            Verdict::Unverified(Stale { .. }) => (401, Empty, Level::WARN, "stale"),
            Verdict::UnknownConnection => (404, Empty, Level::INFO, "unknown_connection"),
            Verdict::Stopped(_) => (404, NoRetry, Level::INFO, "stopped"),
            Verdict::Unrouted(Kind::Command) => (200, json(NOT_CONNECTED), Level::INFO, "unrouted"),
            Verdict::Unrouted(Kind::Options) => (200, json(NO_OPTIONS), Level::INFO, "unrouted"),
            Verdict::Unrouted(_) => (200, Empty, Level::INFO, "unrouted"),
            Verdict::SharedRouteClosed => (404, Empty, Level::WARN, "shared_route_closed"),
            Verdict::DirectoryUnavailable(_) => {
                (503, RetryLater, Level::ERROR, "directory_unavailable")
            }
            Verdict::NotStored(Kind::Command, _) => {
                (200, json(NOT_STORED), Level::ERROR, "unavailable")
            }
            Verdict::NotStored(Kind::Options, _) => {
                (200, json(NO_OPTIONS), Level::ERROR, "unavailable")
            }
            Verdict::NotStored(..) => (503, RetryLater, Level::ERROR, "unavailable"),
            Verdict::SubmissionNotStored(block, _) => {
                (200, Json(view_error(block)), Level::ERROR, "unavailable")
            }
            Verdict::TooLarge => (413, Empty, Level::WARN, "too_large"),
            Verdict::UnsupportedMediaType => (415, Empty, Level::WARN, "media_type"),
            Verdict::TransferEncoding => (400, Empty, Level::WARN, "transfer_encoding"),
            Verdict::BodyTimeout => (408, Empty, Level::WARN, "body_timeout"),
            Verdict::BodyIncomplete => (400, Empty, Level::INFO, "body_incomplete"),
            Verdict::Overloaded => (503, RetryLater, Level::ERROR, "overloaded"),
        };
        let status = StatusCode::from_u16(status).expect("the table holds valid statuses");
        Self { status, body, level, outcome }
    }

    /// Converts the response to HTTP.
    pub fn into_http(self) -> Response<Body> {
        let (body, header) = match self.body {
            ResponseBody::Empty => (Body::empty(), None),
            ResponseBody::Text(text) => {
                (Body::from(text), Some((header::CONTENT_TYPE, "text/plain")))
            }
            ResponseBody::Json(json) => {
                (Body::from(json), Some((header::CONTENT_TYPE, "application/json")))
            }
            ResponseBody::NoRetry => {
                (Body::empty(), Some((HeaderName::from_static("x-slack-no-retry"), "1")))
            }
            ResponseBody::RetryLater => (Body::empty(), Some((header::RETRY_AFTER, "1"))),
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
        // The rest of an unread or incomplete body must not be parsed as the next request.
        if matches!(self.status.as_u16(), 400 | 408 | 413) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Returns a body that keeps a view open and shows an error at one of its inputs.
fn view_error(block: &str) -> Bytes {
    serde_json::json!({
        "response_action": "errors",
        "errors": { block: SUBMISSION_NOT_STORED },
    })
    .to_string()
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        directory::DirectoryUnavailableError,
        webhook::publisher::{PublishError, Stored},
    };
    use Verdict::{NotStored, Relayed, Unanswered, Unrouted, Unverified};
    use async_nats::jetstream::publish::PublishAck;
    use std::time::Duration;

    macro_rules! rows {
        ($($name:ident: $verdict:expr
            => $status:literal $outcome:literal $level:ident $body:expr;)*) => {$(
            #[test]
            fn $name() {
                let response = HttpResponse::new(&$verdict);
                assert_eq!(response.status.as_u16(), $status);
                assert_eq!((response.outcome, response.level), ($outcome, $level));
                let body = match response.body {
                    ResponseBody::Empty => String::new(),
                    ResponseBody::Text(text) => text,
                    ResponseBody::Json(json) => String::from_utf8_lossy(&json).into_owned(),
                    ResponseBody::NoRetry => "no retry".into(),
                    ResponseBody::RetryLater => "retry later".into(),
                };
                assert_eq!(body, $body);
            }
        )*};
    }

    fn stored(duplicate: bool) -> Stored {
        let ack = serde_json::json!({ "stream": "SLACK_IN", "seq": 1, "duplicate": duplicate });
        serde_json::from_value::<PublishAck>(ack).expect("valid acknowledgement").into()
    }

    const I: Level = Level::INFO;
    const W: Level = Level::WARN;
    const E: Level = Level::ERROR;
    const FULL: PublishError = PublishError::StreamFull;
    const STALE: SignatureError = SignatureError::Stale { skew: Duration::MAX };
    const EVENT: Kind = Kind::Event;
    const VIEW_ERROR: &str = concat!(
        r#"{"errors":{"b":"This was not accepted. Please try again in a moment."},"#,
        r#""response_action":"errors"}"#
    );

    rows! {
        rejects_bad_signature: Unverified(SignatureError::BadSignature) => 401 "bad_signature" W "";
        rejects_missing_signature: Unverified(SignatureError::NoSignature) => 401 "no_signature" W "";
        rejects_missing_timestamp: Unverified(SignatureError::NoTimestamp) => 401 "no_timestamp" W "";
        rejects_stale_timestamp: Unverified(STALE) => 401 "stale" W "";
        rejects_unknown_connection: Verdict::UnknownConnection => 404 "unknown_connection" I "";
        rejects_stopped_connection: Verdict::Stopped(EVENT) => 404 "stopped" I "no retry";
        accepts_unrouted_event: Unrouted(EVENT) => 200 "unrouted" I "";
        explains_unrouted_command: Unrouted(Kind::Command) => 200 "unrouted" I NOT_CONNECTED;
        returns_no_unrouted_options: Unrouted(Kind::Options) => 200 "unrouted" I NO_OPTIONS;
        rejects_closed_shared_route: Verdict::SharedRouteClosed => 404 "shared_route_closed" W "";
        echoes_challenge: Verdict::Challenge("c".into()) => 200 "challenge" I "c";
        accepts_ssl_check: Verdict::SslCheck => 200 "ssl_check" I "";
        accepts_stored_command: Verdict::Stored(Kind::Command, stored(false)) => 200 "accepted" I "";
        accepts_stored_unknown: Verdict::Stored(Kind::Unknown, stored(false)) => 200 "accepted" I "";
        accepts_duplicate: Verdict::Stored(EVENT, stored(true)) => 200 "duplicate" I "";
        relays_body: Relayed(Kind::Options, stored(false), Bytes::from_static(b"{}"))
            => 200 "accepted" I "{}";
        relays_empty_body: Relayed(Kind::Interaction, stored(false), Bytes::new())
            => 200 "accepted" I "";
        shows_unanswered_submission: Unanswered(Kind::Interaction, stored(false))
            => 200 "accepted" W WORKING_ON_IT;
        returns_no_unanswered_options: Unanswered(Kind::Options, stored(false)) => 200 "accepted" W NO_OPTIONS;
        delays_event_not_stored: NotStored(EVENT, FULL) => 503 "unavailable" E "retry later";
        delays_action_not_stored: NotStored(Kind::Interaction, FULL) => 503 "unavailable" E "retry later";
        explains_command_not_stored: NotStored(Kind::Command, FULL) => 200 "unavailable" E NOT_STORED;
        returns_no_options_not_stored: NotStored(Kind::Options, FULL) => 200 "unavailable" E NO_OPTIONS;
        explains_submission_not_stored: Verdict::SubmissionNotStored("b".into(), FULL)
            => 200 "unavailable" E VIEW_ERROR;
        delays_without_directory: Verdict::DirectoryUnavailable(DirectoryUnavailableError)
            => 503 "directory_unavailable" E "retry later";
        rejects_large_body: Verdict::TooLarge => 413 "too_large" W "";
        rejects_media_type: Verdict::UnsupportedMediaType => 415 "media_type" W "";
        rejects_transfer_encoding: Verdict::TransferEncoding => 400 "transfer_encoding" W "";
        rejects_slow_body: Verdict::BodyTimeout => 408 "body_timeout" W "";
        rejects_incomplete_body: Verdict::BodyIncomplete => 400 "body_incomplete" I "";
        delays_on_overload: Verdict::Overloaded => 503 "overloaded" E "retry later";
    }
}
