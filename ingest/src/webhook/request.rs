//! Reading of requests within limits of size and time.
//!
//! Nothing beyond the size limit is buffered: a larger `Content-Length` is rejected before the body
//! is read.

use super::{Verdict, signature::UnverifiedRequest};
use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, Request, header},
};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use shared::{
    codec::{
        envelope::{Retry, Word},
        slack::Media,
    },
    stream::BODY_BYTES_MAX,
};
use std::time::Duration;

/// Maximum time to receive a body. Slack gives up after 3 s.
const BODY_TIMEOUT: Duration = Duration::from_secs(3);

const SIGNATURE: HeaderName = HeaderName::from_static("x-slack-signature");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-slack-request-timestamp");
const RETRY_NUM: HeaderName = HeaderName::from_static("x-slack-retry-num");
const RETRY_REASON: HeaderName = HeaderName::from_static("x-slack-retry-reason");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Headers and complete body of a webhook, not verified yet.
#[derive(Debug)]
pub struct WebhookRequest {
    /// Media type of the body.
    pub media: Media,
    /// Body as received.
    pub body: Bytes,
    headers: HeaderMap,
}

impl WebhookRequest {
    /// Reads a request to its end.
    pub async fn read(request: Request<Body>) -> Result<Self, Verdict> {
        let (parts, body) = request.into_parts();
        let headers = parts.headers;
        // Slack sends a length. Both headers together are a means of request smuggling.
        if headers.contains_key(header::TRANSFER_ENCODING) {
            return Err(Verdict::TransferEncoding);
        }
        let media = single_header(&headers, &header::CONTENT_TYPE)
            .and_then(Media::from_content_type)
            .ok_or(Verdict::UnsupportedMediaType)?;
        let length = single_header(&headers, &header::CONTENT_LENGTH)
            .and_then(|length| length.parse::<usize>().ok());
        if length.is_some_and(|length| length > BODY_BYTES_MAX) {
            return Err(Verdict::TooLarge);
        }
        let body = Limited::new(body, BODY_BYTES_MAX).collect();
        let body = match tokio::time::timeout(BODY_TIMEOUT, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Verdict::TooLarge),
            Ok(Err(_)) => return Err(Verdict::BodyIncomplete),
            Err(_) => return Err(Verdict::BodyTimeout),
        };
        Ok(Self { media, body, headers })
    }

    /// Returns the parts that the signature covers.
    pub fn unverified(&self) -> UnverifiedRequest<'_> {
        UnverifiedRequest {
            signature: single_header(&self.headers, &SIGNATURE),
            timestamp: single_header(&self.headers, &TIMESTAMP),
            body: self.body.clone(),
        }
    }

    /// Returns the number and reason of Slack's retry, if it is one.
    pub fn retry(&self) -> Option<Retry> {
        let number = single_header(&self.headers, &RETRY_NUM)?.parse().ok()?;
        let reason = single_header(&self.headers, &RETRY_REASON).and_then(Word::new);
        Some(Retry { number, reason })
    }

    /// Returns the trace context that a proxy has started.
    pub fn traceparent(&self) -> Option<Word> {
        single_header(&self.headers, &TRACEPARENT).and_then(Word::new)
    }
}

/// Returns the value of a header that is present exactly once. Two values would be ambiguous.
fn single_header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}
