//! An answer that Slack wants in the HTTP response: sent to the ingest that holds the request open.
//!
//! In: an answer and the window its envelope names. Out: whether it was relayed. Only ingest's word makes it so; silence,
//! `late` or a window that is over mean that it has to be said another way.

use bytes::Bytes;
use shared::codec::envelope::{RELAYED, ReplyWindow};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What is left of the window.
pub fn left(window: &ReplyWindow) -> Duration {
    let until = UNIX_EPOCH + Duration::from_millis(window.by_ms);
    until.duration_since(SystemTime::now()).unwrap_or_default()
}

/// Sends an answer; true only if it went into the HTTP response.
pub async fn relay(nats: &async_nats::Client, window: &ReplyWindow, answer: Bytes) -> bool {
    let left = left(window);
    if left.is_zero() {
        return false;
    }
    let request = nats.request(window.to.as_str().to_owned(), answer);
    // The window is the HTTP request's; ingest's word on what it did with the answer may come a little after it.
    let heard = tokio::time::timeout(left + Duration::from_millis(500), request).await;
    matches!(heard, Ok(Ok(word)) if word.payload == RELAYED)
}
