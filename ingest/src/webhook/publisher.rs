//! Publishing of webhooks to JetStream.
//!
//! All attempts of a webhook share [`PUBLISH_TIMEOUT`] and the dedup key: if an attempt timed out
//! but was stored, the next one is confirmed as a duplicate. A full stream ends the attempts early.
//!
//! Workers trust what is stored: they do not verify the signature again. They have neither the
//! secrets of shared apps, which are a setting of ingest, nor secrets older than a connection's
//! previous one, and they read webhooks days after their signature (replay, redrive, stream reset).
//! Genuine webhooks would become dead letters after a rotation, and a compromised ingest, which has
//! the signing secrets, would pass. The right to publish to `slack.in` protects the stream.

use async_nats::{
    connection::State,
    jetstream::{self, ErrorCode, context::PublishErrorKind, publish::PublishAck},
};
use shared::stream::Envelope;
use std::{error::Error, time::Duration};
use tokio::time::{Instant, sleep_until, timeout_at};

/// Maximum time from a webhook's arrival to the end of the last attempt. Slack waits 3 s, including
/// the network.
const PUBLISH_TIMEOUT: Duration = Duration::from_millis(2_500);
/// Maximum time of one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(800);
/// Time between two attempts.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);
const _: () = assert!(ATTEMPT_TIMEOUT.as_millis() * 3 <= PUBLISH_TIMEOUT.as_millis());

/// JetStream's errors for a full stream (10077) and a full disk (10023).
const FULL: [ErrorCode; 2] = [ErrorCode::STREAM_STORE_FAILED, ErrorCode::INSUFFICIENT_RESOURCES];

/// Client that publishes envelopes.
#[derive(Clone)]
pub struct Publisher {
    js: jetstream::Context,
    client: async_nats::Client,
}

/// Proof that JetStream confirmed a webhook. A stored webhook may be answered 200.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    sequence: u64,
    duplicate: bool,
}

impl From<PublishAck> for Stored {
    fn from(ack: PublishAck) -> Self {
        Self { sequence: ack.sequence, duplicate: ack.duplicate }
    }
}

impl Stored {
    /// Returns the sequence in the stream. For a duplicate, that of the first copy.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Returns whether the stream already had the webhook.
    pub fn is_duplicate(&self) -> bool {
        self.duplicate
    }
}

/// Failure to store a webhook.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// Full stream or disk.
    #[error("stream is full")]
    StreamFull,
    /// No confirmation in time, with the error of the last attempt. The webhook may be stored.
    #[error("JetStream did not confirm webhook within {PUBLISH_TIMEOUT:?}: {0}")]
    Timeout(String),
    /// No attempt: the connection may have changed while NATS was unreachable.
    #[error("failed to read directory")]
    DirectoryUnavailable,
}

impl Publisher {
    /// Creates a publisher on a NATS client.
    pub fn new(client: async_nats::Client, js: jetstream::Context) -> Self {
        Self { js, client }
    }

    /// Returns whether the client is connected to NATS.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Stores a webhook. Ends at most [`PUBLISH_TIMEOUT`] after `arrived_at`.
    pub async fn publish(
        &self,
        envelope: &Envelope,
        arrived_at: Instant,
    ) -> Result<Stored, PublishError> {
        let deadline = arrived_at + PUBLISH_TIMEOUT;
        let mut last_error = String::from("NATS is not connected");
        while Instant::now() < deadline {
            // Without a connection the client would buffer each webhook in memory.
            if self.is_connected() {
                let attempt_deadline = deadline.min(Instant::now() + ATTEMPT_TIMEOUT);
                match timeout_at(attempt_deadline, self.publish_once(envelope)).await {
                    Ok(Ok(stored)) => return Ok(stored),
                    Ok(Err(AttemptError::StreamFull)) => return Err(PublishError::StreamFull),
                    Ok(Err(AttemptError::Other(error))) => last_error = error,
                    Err(_) => last_error = "no response from JetStream".into(),
                }
            }
            sleep_until(deadline.min(Instant::now() + RETRY_INTERVAL)).await;
        }
        Err(PublishError::Timeout(last_error))
    }

    async fn publish_once(&self, envelope: &Envelope) -> Result<Stored, AttemptError> {
        let (subject, headers) = (envelope.subject(), envelope.headers());
        let ack =
            self.js.publish_with_headers(subject, headers, envelope.body.clone()).await?.await?;
        Ok(ack.into())
    }
}

enum AttemptError {
    StreamFull,
    Other(String),
}

impl From<jetstream::context::PublishError> for AttemptError {
    fn from(error: jetstream::context::PublishError) -> Self {
        // The client has no error kind for a full stream; the server's code is in the source.
        let code = error
            .source()
            .and_then(|source| source.downcast_ref::<jetstream::Error>())
            .map(jetstream::Error::error_code);
        match error.kind() {
            _ if code.is_some_and(|code| FULL.contains(&code)) => Self::StreamFull,
            PublishErrorKind::StreamNotFound => Self::Other(
                "stream is missing or has no leader; run tidegate migrate if it is missing".into(),
            ),
            _ => Self::Other(error.to_string()),
        }
    }
}
