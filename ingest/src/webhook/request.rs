//! Requests, read within limits of size and time.
//!
//! Requests that the head alone disqualifies are rejected before the body is read: a length over
//! the limit, a malformed signature, a stale timestamp.

use super::{
    UnverifiedBudget, Verdict,
    signature::{UnverifiedRequest, check_headers},
};
use axum::{
    body::Body,
    http::{HeaderMap, HeaderName, Request, header},
};
use bytes::Bytes;
use shared::{
    domain::{HeaderToken, MediaType},
    slack::BodyParts,
    stream::{BODY_BYTES_MAX, FORWARDED_DELIVERY, RetryHeaders},
};
use std::time::{Duration, SystemTime};
use tokio::sync::SemaphorePermit;

/// Maximum time to receive a body. Slack gives up after 3 s.
const BODY_TIMEOUT: Duration = Duration::from_secs(3);
/// Maximum length of Slack's certificate check: `ssl_check=1` and a token. It is not signed.
const SSL_CHECK_BYTES_MAX: usize = 1024;

const SIGNATURE: HeaderName = HeaderName::from_static("x-slack-signature");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-slack-request-timestamp");
const RETRY_NUM: HeaderName = HeaderName::from_static("x-slack-retry-num");
const RETRY_REASON: HeaderName = HeaderName::from_static("x-slack-retry-reason");
const FORWARDED: HeaderName = HeaderName::from_static(FORWARDED_DELIVERY);
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Headers and complete body of a webhook, not verified yet.
#[derive(Debug)]
pub struct WebhookRequest<'b> {
    /// Media type of the body.
    pub media: MediaType,
    /// Body as received.
    pub body: Bytes,
    headers: HeaderMap,
    /// Bytes of the body in the budget for unverified bodies.
    taken: Option<SemaphorePermit<'b>>,
}

impl<'b> WebhookRequest<'b> {
    /// Reads a request to its end. The body counts against `budget`.
    pub async fn read(
        request: Request<Body>,
        budget: &'b UnverifiedBudget,
        now: SystemTime,
    ) -> Result<Self, Verdict> {
        let (parts, body) = request.into_parts();
        let headers = parts.headers;
        // An agent URL that points to Tidegate itself would create a loop.
        if headers.contains_key(FORWARDED) {
            return Err(Verdict::Forwarded);
        }
        // Slack sends `Content-Length`. Both headers together allow request smuggling.
        if headers.contains_key(header::TRANSFER_ENCODING) {
            return Err(Verdict::TransferEncoding);
        }
        let media = single_header(&headers, &header::CONTENT_TYPE)
            .and_then(MediaType::from_content_type)
            .ok_or(Verdict::UnsupportedMediaType)?;
        // A request without a length has no body.
        let length = single_header(&headers, &header::CONTENT_LENGTH)
            .and_then(|length| length.parse::<usize>().ok())
            .unwrap_or(0);
        if length > BODY_BYTES_MAX {
            return Err(Verdict::TooLarge);
        }
        let is_signed = headers.contains_key(SIGNATURE) || headers.contains_key(TIMESTAMP);
        if is_signed || media != MediaType::Form || length > SSL_CHECK_BYTES_MAX {
            let signature = single_header(&headers, &SIGNATURE);
            let timestamp = single_header(&headers, &TIMESTAMP);
            check_headers(signature, timestamp, now).map_err(Verdict::Unverified)?;
        }
        let receive = tokio::time::timeout(BODY_TIMEOUT, budget.receive(body, length));
        let (body, taken) = receive.await.map_err(|_| Verdict::BodyTimeout)??;
        Ok(Self { media, body, headers, taken: Some(taken) })
    }

    /// Returns whether the request is Slack's certificate check, which may be unsigned.
    pub fn is_ssl_check(&self) -> bool {
        self.media == MediaType::Form
            && self.body.len() <= SSL_CHECK_BYTES_MAX
            && matches!(BodyParts::split(self.media, &self.body), BodyParts::SslCheck)
    }

    /// Releases the body's bytes from the budget for unverified bodies.
    pub fn leave_budget(&mut self) {
        self.taken = None;
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
    pub fn retry(&self) -> Option<RetryHeaders> {
        let number = single_header(&self.headers, &RETRY_NUM)?.parse().ok()?;
        let reason = single_header(&self.headers, &RETRY_REASON).and_then(HeaderToken::new);
        Some(RetryHeaders { number, reason })
    }

    /// Returns the trace context that a proxy has sent.
    pub fn traceparent(&self) -> Option<HeaderToken> {
        single_header(&self.headers, &TRACEPARENT).and_then(HeaderToken::new)
    }
}

/// Returns the value of a header that is present exactly once. Several values would be ambiguous.
fn single_header<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}
