//! Responses to Slack, as one table: status, body, log level and outcome of each verdict.
//!
//! Slack resends an event that gets no 2xx. It never resends a command, so a command's user gets an
//! error message. Above 95 % non-2xx Slack disables an app in all workspaces, so the shared route
//! answers 200 unless the failure is Tidegate's or the sender's.

use crate::webhook::{NoticePlace, Verdict, signature::SignatureError};
use axum::{
    body::Body,
    http::{HeaderName, HeaderValue, Response, StatusCode, header},
};
use bytes::Bytes;
use serde_json::json;
use shared::{domain::WebhookKind, slack::SyncResponseKind};
use std::time::Duration;
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
    /// No body. Slack would show a body to the user of a command.
    Empty,
    /// Plain text.
    Text(String),
    /// JSON: an ephemeral message, options, or an update of a view.
    Json(Bytes),
    /// No body, and `X-Slack-No-Retry: 1`, which stops Slack's retries.
    NoRetry,
    /// No body, and `Retry-After` with these seconds.
    RetryAfter(u64),
}

const NOT_STORED: &str = "This was not accepted. Please try again in a moment.";
const OVER_QUOTA: &str = "This workspace sends too much at once. Please try again in a moment.";
const NOT_CONNECTED: &str =
    r#"{"response_type":"ephemeral","text":"This app is not connected here."}"#;
const NO_OPTIONS: &str = r#"{"options":[]}"#;
const WORKING_ON_IT: &str = concat!(
    r#"{"response_action":"update","view":{"type":"modal","#,
    r#""title":{"type":"plain_text","text":"One moment"},"#,
    r#""blocks":[{"type":"section","text":{"type":"plain_text","text":"Working on it …"}}]}}"#
);
/// `Retry-After` of failures of unknown duration.
const RETRY_AFTER: Duration = Duration::from_secs(1);

impl HttpResponse {
    /// Creates the response to a verdict.
    pub fn new(verdict: &Verdict) -> Self {
        use ResponseBody::{Empty, Json, NoRetry, Text};
        use SignatureError::{BadSignature, NoSignature, NoTimestamp, Stale};
        let json = |text: &'static str| Json(Bytes::from_static(text.as_bytes()));
        let (status, body, level, outcome) = match verdict {
            Verdict::Relayed(_, _, body) if body.is_empty() => {
                (200, Empty, Level::INFO, "accepted")
            }
            Verdict::Relayed(_, _, body) => (200, Json(body.clone()), Level::INFO, "accepted"),
            Verdict::Unanswered(SyncResponseKind::Options, ..) => {
                (200, json(NO_OPTIONS), Level::WARN, "accepted")
            }
            Verdict::Unanswered(SyncResponseKind::View, ..) => {
                (200, json(WORKING_ON_IT), Level::WARN, "accepted")
            }
            // An empty body closes a dialog and keeps a message. A worker sends the answer to the
            // response_url.
            Verdict::Unanswered(SyncResponseKind::Dialog | SyncResponseKind::Message, ..) => {
                (200, Empty, Level::WARN, "accepted")
            }
            Verdict::Stored(_, stored) if stored.is_duplicate() => {
                (200, Empty, Level::INFO, "duplicate")
            }
            Verdict::Stored(..) => (200, Empty, Level::INFO, "accepted"),
            Verdict::Challenge(text) => (200, Text(text.clone()), Level::INFO, "challenge"),
            Verdict::SslCheck => (200, Empty, Level::INFO, "ssl_check"),
            // All causes get the same response, so that a forger learns nothing.
            Verdict::Unverified(BadSignature) => (401, Empty, Level::WARN, "bad_signature"),
            Verdict::Unverified(NoSignature) => (401, Empty, Level::WARN, "no_signature"),
            Verdict::Unverified(NoTimestamp) => (401, Empty, Level::WARN, "no_timestamp"),
            Verdict::Unverified(Stale { .. }) => (401, Empty, Level::WARN, "stale"),
            Verdict::UnknownConnection => (404, Empty, Level::INFO, "unknown_connection"),
            Verdict::Stopped(_) => (404, NoRetry, Level::INFO, "stopped"),
            Verdict::Unrouted(WebhookKind::Command) => {
                (200, json(NOT_CONNECTED), Level::INFO, "unrouted")
            }
            Verdict::Unrouted(WebhookKind::Options) => {
                (200, json(NO_OPTIONS), Level::INFO, "unrouted")
            }
            Verdict::Unrouted(_) => (200, Empty, Level::INFO, "unrouted"),
            Verdict::OtherInstallation(kind) => {
                let response = Self::new(&Verdict::Unrouted(*kind));
                return Self { level: Level::WARN, outcome: "other_installation", ..response };
            }
            Verdict::Forwarded => (508, Empty, Level::WARN, "forwarded"),
            Verdict::SharedRouteClosed => (404, Empty, Level::WARN, "shared_route_closed"),
            Verdict::DirectoryUnavailable(_) => {
                let (status, body) = retry_after(RETRY_AFTER);
                (status, body, Level::ERROR, "directory_unavailable")
            }
            Verdict::NotStored(_, place, _) => {
                let (status, body) = refusal(place, NOT_STORED, RETRY_AFTER);
                (status, body, Level::ERROR, "unavailable")
            }
            Verdict::OverQuota(_, place, wait) => {
                let (status, body) = refusal(place, OVER_QUOTA, *wait);
                (status, body, Level::WARN, "over_quota")
            }
            Verdict::TooLarge => (413, Empty, Level::WARN, "too_large"),
            Verdict::UnsupportedMediaType => (415, Empty, Level::WARN, "media_type"),
            Verdict::TransferEncoding => (400, Empty, Level::WARN, "transfer_encoding"),
            Verdict::BodyTimeout => (408, Empty, Level::WARN, "body_timeout"),
            Verdict::BodyIncomplete => (400, Empty, Level::INFO, "body_incomplete"),
            Verdict::BodyBudgetExhausted => {
                let (status, body) = retry_after(RETRY_AFTER);
                (status, body, Level::ERROR, "body_budget")
            }
            Verdict::Overloaded => {
                let (status, body) = retry_after(RETRY_AFTER);
                (status, body, Level::ERROR, "overloaded")
            }
        };
        let status = StatusCode::from_u16(status).expect("the table holds valid statuses");
        Self { status, body, level, outcome }
    }

    /// Converts the response to HTTP.
    pub fn into_http(self) -> Response<Body> {
        let named = |name, value| Some((name, HeaderValue::from_static(value)));
        let (body, header) = match self.body {
            ResponseBody::Empty => (Body::empty(), None),
            ResponseBody::Text(text) => {
                (Body::from(text), named(header::CONTENT_TYPE, "text/plain"))
            }
            ResponseBody::Json(json) => {
                (Body::from(json), named(header::CONTENT_TYPE, "application/json"))
            }
            ResponseBody::NoRetry => {
                (Body::empty(), named(HeaderName::from_static("x-slack-no-retry"), "1"))
            }
            ResponseBody::RetryAfter(seconds) => {
                (Body::empty(), Some((header::RETRY_AFTER, HeaderValue::from(seconds))))
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() = self.status;
        if let Some((name, value)) = header {
            response.headers_mut().insert(name, value);
        }
        // The rest of an unread or incomplete body must not be parsed as the next request.
        if matches!(self.status.as_u16(), 400 | 408 | 413) {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// Returns the response to a webhook that is not stored: `text` where Slack shows it, otherwise
/// 503. After a 503, Slack resends an event, and shows its own error for a click or view.
fn refusal(place: &NoticePlace, text: &str, wait: Duration) -> (u16, ResponseBody) {
    let body = match place {
        NoticePlace::Command => json!({ "response_type": "ephemeral", "text": text }),
        NoticePlace::LegacyMessage => {
            json!({ "response_type": "ephemeral", "replace_original": false, "text": text })
        }
        NoticePlace::Options => json!({ "options": [] }),
        NoticePlace::InputBlock(block) => {
            json!({ "response_action": "errors", "errors": { block: text } })
        }
        NoticePlace::DialogElement(name) => json!({ "errors": [{ "name": name, "error": text }] }),
        NoticePlace::Nowhere => return retry_after(wait),
    };
    (200, ResponseBody::Json(body.to_string().into()))
}

/// Returns a 503, after which Slack resends an event. `Retry-After` is at least 1 s.
fn retry_after(wait: Duration) -> (u16, ResponseBody) {
    (503, ResponseBody::RetryAfter(wait.as_millis().div_ceil(1_000).max(1) as u64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        directory::DirectoryUnavailableError,
        webhook::publisher::{PublishError, Stored},
    };
    use NoticePlace::{DialogElement, InputBlock, LegacyMessage, Nowhere};
    use SyncResponseKind::{Dialog, Message, Options, View};
    use Verdict::{
        NotStored, OtherInstallation, OverQuota, Relayed, Unanswered, Unrouted, Unverified,
    };
    use WebhookKind::{Command, Interaction};
    use async_nats::jetstream::publish::PublishAck;

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
                    ResponseBody::RetryAfter(seconds) => format!("retry after {seconds}"),
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
    const EVENT: WebhookKind = WebhookKind::Event;
    const WAIT: Duration = Duration::from_millis(3_200);
    const COMMAND_NOT_STORED: &str = concat!(
        r#"{"response_type":"ephemeral","#,
        r#""text":"This was not accepted. Please try again in a moment."}"#
    );
    const VIEW_ERROR: &str = concat!(
        r#"{"errors":{"b":"This was not accepted. Please try again in a moment."},"#,
        r#""response_action":"errors"}"#
    );
    const COMMAND_OVER_QUOTA: &str = concat!(
        r#"{"response_type":"ephemeral","#,
        r#""text":"This workspace sends too much at once. Please try again in a moment."}"#
    );
    const MESSAGE_OVER_QUOTA: &str = concat!(
        r#"{"replace_original":false,"response_type":"ephemeral","#,
        r#""text":"This workspace sends too much at once. Please try again in a moment."}"#
    );
    const VIEW_OVER_QUOTA: &str = concat!(
        r#"{"errors":{"b":"This workspace sends too much at once. "#,
        r#"Please try again in a moment."},"response_action":"errors"}"#
    );
    const DIALOG_OVER_QUOTA: &str = concat!(
        r#"{"errors":[{"error":"This workspace sends too much at once. "#,
        r#"Please try again in a moment.","name":"n"}]}"#
    );

    rows! {
        rejects_bad_signature: Unverified(SignatureError::BadSignature) => 401 "bad_signature" W "";
        rejects_missing_signature: Unverified(SignatureError::NoSignature) => 401 "no_signature" W "";
        rejects_missing_timestamp: Unverified(SignatureError::NoTimestamp) => 401 "no_timestamp" W "";
        rejects_stale_timestamp: Unverified(STALE) => 401 "stale" W "";
        rejects_unknown_connection: Verdict::UnknownConnection => 404 "unknown_connection" I "";
        rejects_stopped_connection: Verdict::Stopped(EVENT) => 404 "stopped" I "no retry";
        accepts_unrouted_event: Unrouted(EVENT) => 200 "unrouted" I "";
        explains_unrouted_command: Unrouted(WebhookKind::Command) => 200 "unrouted" I NOT_CONNECTED;
        returns_no_unrouted_options: Unrouted(WebhookKind::Options) => 200 "unrouted" I NO_OPTIONS;
        accepts_event_of_other_installation: OtherInstallation(EVENT) => 200 "other_installation" W "";
        explains_other_installation: OtherInstallation(WebhookKind::Command)
            => 200 "other_installation" W NOT_CONNECTED;
        rejects_forwarded_request: Verdict::Forwarded => 508 "forwarded" W "";
        rejects_closed_shared_route: Verdict::SharedRouteClosed => 404 "shared_route_closed" W "";
        echoes_challenge: Verdict::Challenge("c".into()) => 200 "challenge" I "c";
        accepts_ssl_check: Verdict::SslCheck => 200 "ssl_check" I "";
        accepts_stored_command: Verdict::Stored(WebhookKind::Command, stored(false)) => 200 "accepted" I "";
        accepts_stored_unknown: Verdict::Stored(WebhookKind::Unknown, stored(false)) => 200 "accepted" I "";
        accepts_duplicate: Verdict::Stored(EVENT, stored(true)) => 200 "duplicate" I "";
        relays_body: Relayed(WebhookKind::Options, stored(false), Bytes::from_static(b"{}"))
            => 200 "accepted" I "{}";
        relays_empty_body: Relayed(WebhookKind::Interaction, stored(false), Bytes::new())
            => 200 "accepted" I "";
        shows_unanswered_submission: Unanswered(View, WebhookKind::Interaction, stored(false))
            => 200 "accepted" W WORKING_ON_IT;
        closes_unanswered_dialog: Unanswered(Dialog, WebhookKind::Interaction, stored(false))
            => 200 "accepted" W "";
        keeps_unanswered_message: Unanswered(Message, WebhookKind::Interaction, stored(false))
            => 200 "accepted" W "";
        returns_no_unanswered_options: Unanswered(Options, WebhookKind::Options, stored(false))
            => 200 "accepted" W NO_OPTIONS;
        delays_event_not_stored: NotStored(EVENT, Nowhere, FULL) => 503 "unavailable" E "retry after 1";
        delays_click_not_stored: NotStored(Interaction, Nowhere, FULL) => 503 "unavailable" E "retry after 1";
        explains_command_not_stored: NotStored(Command, NoticePlace::Command, FULL)
            => 200 "unavailable" E COMMAND_NOT_STORED;
        returns_no_options_not_stored: NotStored(WebhookKind::Options, NoticePlace::Options, FULL)
            => 200 "unavailable" E NO_OPTIONS;
        explains_submission_not_stored: NotStored(Interaction, InputBlock("b".into()), FULL)
            => 200 "unavailable" E VIEW_ERROR;
        delays_event_over_quota: OverQuota(EVENT, Nowhere, WAIT) => 503 "over_quota" W "retry after 4";
        delays_click_over_quota: OverQuota(Interaction, Nowhere, Duration::ZERO)
            => 503 "over_quota" W "retry after 1";
        explains_command_over_quota: OverQuota(Command, NoticePlace::Command, WAIT)
            => 200 "over_quota" W COMMAND_OVER_QUOTA;
        returns_no_options_over_quota: OverQuota(WebhookKind::Options, NoticePlace::Options, WAIT)
            => 200 "over_quota" W NO_OPTIONS;
        explains_submission_over_quota: OverQuota(Interaction, InputBlock("b".into()), WAIT)
            => 200 "over_quota" W VIEW_OVER_QUOTA;
        explains_dialog_over_quota: OverQuota(Interaction, DialogElement("n".into()), WAIT)
            => 200 "over_quota" W DIALOG_OVER_QUOTA;
        explains_legacy_click_over_quota: OverQuota(Interaction, LegacyMessage, WAIT)
            => 200 "over_quota" W MESSAGE_OVER_QUOTA;
        delays_without_directory: Verdict::DirectoryUnavailable(DirectoryUnavailableError)
            => 503 "directory_unavailable" E "retry after 1";
        rejects_large_body: Verdict::TooLarge => 413 "too_large" W "";
        rejects_media_type: Verdict::UnsupportedMediaType => 415 "media_type" W "";
        rejects_transfer_encoding: Verdict::TransferEncoding => 400 "transfer_encoding" W "";
        rejects_slow_body: Verdict::BodyTimeout => 408 "body_timeout" W "";
        rejects_incomplete_body: Verdict::BodyIncomplete => 400 "body_incomplete" I "";
        delays_without_body_budget: Verdict::BodyBudgetExhausted => 503 "body_budget" E "retry after 1";
        delays_on_overload: Verdict::Overloaded => 503 "overloaded" E "retry after 1";
    }
}
