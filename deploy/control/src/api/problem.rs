//! Errors as RFC 9457 problems: `application/problem+json`.

use axum::{
    Json,
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use shared::{
    operations::{FileProblem, OperationError},
    runtime::telemetry::ErrorChain,
    store::StoreError,
};
use std::collections::BTreeMap;
use tracing::warn;
use utoipa::{
    IntoResponses, ToSchema,
    openapi::{ContentBuilder, Ref, RefOr, Response as Described, ResponseBuilder},
};

/// Seconds after which a caller may repeat a request that failed because of an outage.
const RETRY_AFTER_OUTAGE: u64 = 2;

/// Error of a request.
#[derive(Debug, Serialize, ToSchema)]
pub struct Problem {
    /// URN of the kind of error, such as `urn:tidegate:problem:not-found`.
    #[serde(rename = "type")]
    kind: String,
    /// Kind of error, as text.
    title: &'static str,
    /// HTTP status.
    status: u16,
    /// Explanation of this error.
    detail: String,
    /// Problems of a file, in the order of their lines.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    errors: Vec<LineProblem>,
    #[serde(skip)]
    retry_after: Option<u64>,
}

/// Problem of one line of a file.
#[derive(Debug, Serialize, ToSchema)]
pub struct LineProblem {
    /// Line, from 1.
    line: u64,
    /// Cause and remedy.
    text: String,
}

macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident, $status:ident, $word:literal, $title:literal;)*) => {
        impl Problem {
            $($(#[$doc])*
            pub fn $name(detail: impl Into<String>) -> Self {
                Self::new(StatusCode::$status, $word, $title, detail.into())
            })*
        }
    };
}

problems! {
    /// The request is malformed.
    bad_request, BAD_REQUEST, "bad-request", "Malformed request";
    /// The request has no valid API key.
    unauthorized, UNAUTHORIZED, "unauthorized", "No valid API key";
    /// The role of the API key does not allow the request.
    forbidden, FORBIDDEN, "forbidden", "The role of the API key does not allow this";
    /// The object does not exist, or belongs to another organization.
    not_found, NOT_FOUND, "not-found", "Not found";
    /// The path does not have this method.
    method_not_allowed, METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed";
    /// The state of the object does not allow the request.
    conflict, CONFLICT, "conflict", "Conflict";
    /// The body is too large.
    too_large, PAYLOAD_TOO_LARGE, "too-large", "Body too large";
    /// The content type of the body is not supported.
    unsupported_media_type, UNSUPPORTED_MEDIA_TYPE, "unsupported-media-type",
        "Unsupported content type";
    /// A value is not allowed.
    invalid, UNPROCESSABLE_ENTITY, "invalid", "Invalid value";
    /// The API key sends too many requests.
    rate_limited, TOO_MANY_REQUESTS, "rate-limited", "Too many requests";
    /// Tidegate can't answer at the moment.
    unavailable, SERVICE_UNAVAILABLE, "unavailable", "Temporarily unavailable";
    /// The request took too long.
    timeout, GATEWAY_TIMEOUT, "timeout", "The request took too long";
}

impl Problem {
    fn new(status: StatusCode, word: &str, title: &'static str, detail: String) -> Self {
        let kind = format!("urn:tidegate:problem:{word}");
        let errors = Vec::new();
        Self { kind, title, status: status.as_u16(), detail, errors, retry_after: None }
    }

    /// Adds problems of a file.
    pub fn with_errors(self, problems: Vec<FileProblem>) -> Self {
        let of_line = |p: FileProblem| LineProblem { line: p.line as u64, text: p.text };
        Self { errors: problems.into_iter().map(of_line).collect(), ..self }
    }

    /// Returns the HTTP status.
    pub fn status(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
    }

    /// Returns the title and the detail.
    pub fn texts(&self) -> (&'static str, &str) {
        (self.title, &self.detail)
    }

    /// Sets the time after which the request may be repeated.
    pub fn retry_after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.status();
        let retry_after = self.retry_after;
        let mut response = (status, Json(self)).into_response();
        let headers = response.headers_mut();
        let kind = HeaderValue::from_static("application/problem+json");
        headers.insert(header::CONTENT_TYPE, kind);
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Errors that every route may return.
pub struct Failures;

impl IntoResponses for Failures {
    fn responses() -> BTreeMap<String, RefOr<Described>> {
        let described = |(status, why): (&str, &str)| {
            let schema = Ref::from_schema_name("Problem");
            let content = ContentBuilder::new().schema(Some(schema)).build();
            let response = ResponseBuilder::new().description(why);
            let response = response.content("application/problem+json", content).build();
            (status.to_owned(), RefOr::T(response))
        };
        FAILURES.into_iter().map(described).collect()
    }
}

const FAILURES: [(&str, &str); 11] = [
    ("400", "The request is malformed."),
    ("401", "The request has no valid API key."),
    ("403", "The role of the API key does not allow the request."),
    ("404", "The object does not exist, or belongs to another organization."),
    ("409", "The state of the object does not allow the request."),
    ("413", "The body has more than 64 KiB, or 1 MiB for declarations."),
    ("415", "The body is not JSON."),
    ("422", "A value is not allowed, or the Idempotency-Key was used for another request."),
    ("429", "The API key sends too many requests. `Retry-After` has the seconds to wait."),
    ("503", "Tidegate can't answer at the moment. `Retry-After` has the seconds to wait."),
    ("504", "The request took too long. A change may be stored."),
];

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Missing(object) => Self::not_found(format!("{object} does not exist")),
            error => {
                warn!(error = %ErrorChain(&error), "failed to answer request");
                Self::unavailable("the database did not answer").retry_after(RETRY_AFTER_OUTAGE)
            }
        }
    }
}

impl From<OperationError> for Problem {
    fn from(error: OperationError) -> Self {
        match error {
            OperationError::NotFound(_) => Self::not_found(error.to_string()),
            OperationError::Invalid(why) => Self::invalid(why),
            OperationError::Conflict(why) => Self::conflict(why),
            OperationError::Store(error) => error.into(),
            OperationError::Directory(_) | OperationError::Stream(_) => {
                warn!(error = %ErrorChain(&error), "failed to apply change");
                Self::unavailable("the change is stored, and reaches the ingests later")
                    .retry_after(RETRY_AFTER_OUTAGE)
            }
            OperationError::NotApplied(error) => {
                warn!(error = %ErrorChain(&error), "failed to apply change");
                Self::timeout("the change is stored, and not every ingest has applied it yet")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_problem_json() {
        let response = Problem::rate_limited("at most 50 a second").retry_after(3).into_response();
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[header::CONTENT_TYPE], "application/problem+json");
        assert_eq!(response.headers()[header::RETRY_AFTER], "3");
        let text = serde_json::to_value(Problem::not_found("agent a/b does not exist"));
        assert_eq!(
            text.expect("JSON"),
            serde_json::json!({
                "type": "urn:tidegate:problem:not-found", "title": "Not found", "status": 404,
                "detail": "agent a/b does not exist",
            })
        );
    }
}
