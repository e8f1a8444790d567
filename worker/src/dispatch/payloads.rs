//! Loading of payloads: from memory if this worker's intake has just committed the delivery,
//! otherwise from Postgres.

use super::{attempt::RELEASE_WAIT, attempt_context::AttemptContext};
use shared::{
    runtime::telemetry::ErrorChain,
    store::{ClaimedDelivery, SealedPayload},
    stream::{self, DecodeError, Envelope, pairs_to_headers},
};
use std::time::Duration;
use tracing::warn;

/// Wait for an encryption key or a newer release that an operator must deploy.
const UNREADABLE_WAIT: Duration = Duration::from_secs(60);

/// Failure to load a payload.
pub enum PayloadError {
    /// Unreadable for now. A later attempt, a newer release or another key may read it.
    Wait(Duration, String),
    /// Deleted, or no valid envelope.
    Lost(String),
}

/// Loads the envelope of a delivery.
pub async fn load(
    context: &AttemptContext,
    delivery: &ClaimedDelivery,
) -> Result<Envelope, PayloadError> {
    if let Some(envelope) = context.clients.payloads.take(delivery.dedup_key.as_str()) {
        return Ok(envelope);
    }
    let wait = |error: String| PayloadError::Wait(RELEASE_WAIT, error);
    let loaded = context.payloads.run(delivery.clone()).await;
    let loaded = loaded.ok_or_else(|| wait("the batch that loads payloads panicked".into()))?;
    let payload = match loaded.map_err(|error| wait(ErrorChain(&error).to_string()))? {
        None => return Err(PayloadError::Lost("the delivery was deleted".into())),
        Some(Ok(payload)) => payload,
        Some(Err(reason)) => {
            warn!(key = %delivery.dedup_key, reason, "failed to decrypt payload of delivery");
            return Err(PayloadError::Wait(UNREADABLE_WAIT, reason));
        }
    };
    let SealedPayload { headers, body } = payload;
    let subject = stream::subject(delivery.partition, delivery.key.connection);
    match Envelope::decode(&subject, Some(&pairs_to_headers(&headers)), body.into()) {
        // A replayed delivery has its own dedup key.
        Ok(envelope) => Ok(Envelope { dedup_key: delivery.dedup_key.clone(), ..envelope }),
        Err(newer @ DecodeError::Newer(_)) => {
            Err(PayloadError::Wait(UNREADABLE_WAIT, newer.to_string()))
        }
        Err(reason) => Err(PayloadError::Lost(reason.to_string())),
    }
}
