//! Relay of sync responses to the ingest process that holds Slack's HTTP request open.
//!
//! A response counts as relayed only if ingest confirms it; otherwise the caller sends it another
//! way. Ingest decides whether the request is still open, since clocks of workers may differ.

use bytes::Bytes;
use shared::stream::{RESPONSE_RELAYED, SyncResponseWindow};
use std::time::Duration;

/// Maximum wait for the confirmation. Exceeds the time for which Slack's request is open.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Relays a response. Returns whether ingest confirmed it.
pub async fn relay(
    nats: &async_nats::Client,
    window: &SyncResponseWindow,
    response: Bytes,
) -> bool {
    let request = nats.request(window.to.as_str().to_owned(), response);
    let answered = tokio::time::timeout(TIMEOUT, request).await;
    matches!(answered, Ok(Ok(answer)) if answer.payload == RESPONSE_RELAYED)
}
