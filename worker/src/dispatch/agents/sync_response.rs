//! A response that Slack wants in its own HTTP request: sent to the ingest that holds the request open.
//!
//! Only ingest's word makes it relayed; silence, `late` or a window that is over mean that it has to be sent another way.
//! Whether the window is open is ingest's to say: workers' clocks may be off.

use bytes::Bytes;
use shared::codec::envelope::{RELAYED, ReplyWindow};
use std::time::Duration;

/// Time to wait for ingest's word. A window is shorter.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Sends a response; true only if it went into the HTTP response.
pub async fn relay(nats: &async_nats::Client, window: &ReplyWindow, response: Bytes) -> bool {
    let request = nats.request(window.to.as_str().to_owned(), response);
    let heard = tokio::time::timeout(TIMEOUT, request).await;
    matches!(heard, Ok(Ok(word)) if word.payload == RELAYED)
}
