//! A request's body, within limits of size and time.
//!
//! In: an HTTP request. Out: its headers, media type and whole body, unverified; or why not. Nothing beyond the limit is
//! buffered: a length that is too large is refused before a byte of the body is read.

use crate::{webhook::Verdict, webhook::signature::Raw};
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

/// A body has this long to come. Slack itself gives up on us after 3 s.
const BODY_DEADLINE: Duration = Duration::from_secs(3);

const SIGNATURE: HeaderName = HeaderName::from_static("x-slack-signature");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-slack-request-timestamp");
const RETRY_NUM: HeaderName = HeaderName::from_static("x-slack-retry-num");
const RETRY_REASON: HeaderName = HeaderName::from_static("x-slack-retry-reason");
const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// A webhook whose body has been read; nothing is verified.
#[derive(Debug)]
pub struct Incoming {
    /// How to read it.
    pub media: Media,
    /// All of it.
    pub body: Bytes,
    headers: HeaderMap,
}

impl Incoming {
    /// Reads a request.
    pub async fn read(request: Request<Body>) -> Result<Self, Verdict> {
        let (parts, body) = request.into_parts();
        let headers = parts.headers;
        // Slack names the length. Together with a length this header is how requests are smuggled.
        if headers.contains_key(header::TRANSFER_ENCODING) {
            return Err(Verdict::TransferEncoding);
        }
        let media = only(&headers, &header::CONTENT_TYPE).and_then(Media::from_content_type);
        let media = media.ok_or(Verdict::MediaType)?;
        let length = only(&headers, &header::CONTENT_LENGTH).and_then(|length| length.parse().ok());
        if length.is_some_and(|length: usize| length > BODY_BYTES_MAX) {
            return Err(Verdict::TooLarge);
        }
        let whole = Limited::new(body, BODY_BYTES_MAX).collect();
        let body = match tokio::time::timeout(BODY_DEADLINE, whole).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Verdict::TooLarge),
            Ok(Err(_)) => return Err(Verdict::Broken),
            Err(_) => return Err(Verdict::Slow),
        };
        Ok(Self { media, body, headers })
    }

    /// For [`crate::webhook::signature`].
    pub fn raw(&self) -> Raw<'_> {
        let (signature, timestamp) =
            (only(&self.headers, &SIGNATURE), only(&self.headers, &TIMESTAMP));
        Raw { signature, timestamp, body: self.body.clone() }
    }

    /// What Slack says of an earlier try.
    pub fn retry(&self) -> Option<Retry> {
        let number = only(&self.headers, &RETRY_NUM)?.parse().ok()?;
        Some(Retry { number, reason: only(&self.headers, &RETRY_REASON).and_then(Word::new) })
    }

    /// The trace context that a proxy before us began.
    pub fn traceparent(&self) -> Option<Word> {
        only(&self.headers, &TRACEPARENT).and_then(Word::new)
    }
}

/// A header's value when there is exactly one of it: of two, nobody could say which was meant.
fn only<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}
