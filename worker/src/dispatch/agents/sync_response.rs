//! Relays a sync response to the ingest process that holds Slack's HTTP request open.
//!
//! A response counts as relayed only if ingest confirms it; otherwise it has to be sent another
//! way. Ingest decides whether the request is still open, since the clocks of workers may be off.

use bytes::Bytes;
use shared::stream::{RESPONSE_RELAYED, SyncResponseWindow};
use std::time::Duration;

/// Maximum wait for the confirmation, longer than Slack's request is open.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Relays a response. Returns whether it went into Slack's HTTP request.
pub async fn relay(
    nats: &async_nats::Client,
    window: &SyncResponseWindow,
    response: Bytes,
) -> bool {
    let request = nats.request(window.to.as_str().to_owned(), response);
    let answered = tokio::time::timeout(TIMEOUT, request).await;
    matches!(answered, Ok(Ok(answer)) if answer.payload == RESPONSE_RELAYED)
}
