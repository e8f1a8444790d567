//! A webhook into the stream: an [`Envelope`] becomes [`Stored`], or there is a reason why not, in time to
//! tell Slack.
//!
//! One awaited publish at a time for a webhook, many webhooks in flight. All tries together have
//! [`BUDGET`], each has [`TRY`], and all carry the same dedupe key: a publish that timed out may still land,
//! and the next try is then told that it is a duplicate, which is as good. A full stream is told apart, because
//! trying again there is of no use.

use async_nats::{
    connection::State,
    jetstream::{self, ErrorCode, context::PublishErrorKind, publish::PublishAck},
};
use shared::codec::envelope::Envelope;
use std::{error::Error, time::Duration};
use tokio::time::{Instant, sleep_until, timeout_at};

/// From a webhook's arrival to the end of the last try. Slack waits 3 s, and the way there and back takes some of it.
pub const BUDGET: Duration = Duration::from_millis(2_500);
/// One try.
const TRY: Duration = Duration::from_millis(800);
/// Between two looks or tries.
const PAUSE: Duration = Duration::from_millis(50);
const _: () = assert!(TRY.as_millis() * 3 <= BUDGET.as_millis());

/// What JetStream answers when the stream has no room left (10077), or the server's share of the disk (10023).
const FULL: [ErrorCode; 2] = [ErrorCode::STREAM_STORE_FAILED, ErrorCode::INSUFFICIENT_RESOURCES];

/// JetStream, for those who only publish.
#[derive(Clone)]
pub struct Publisher {
    js: jetstream::Context,
    client: async_nats::Client,
}

/// JetStream confirmed that it holds the webhook: the proof that a 200 needs.
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
    /// Its sequence in the stream; for a duplicate that of the first copy.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Whether it was there already.
    pub fn is_duplicate(&self) -> bool {
        self.duplicate
    }
}

/// Why a webhook is not stored; or may be, without our knowing.
#[derive(Debug, thiserror::Error)]
pub enum NotStored {
    /// The stream or its disk is full.
    #[error("the stream is full")]
    Full,
    /// No confirmation in time.
    #[error("not confirmed within {BUDGET:?}: {0}")]
    Unconfirmed(String),
    /// Not tried: the connection may have been changed while NATS was away, and nobody could look.
    #[error("the directory could not be read")]
    NotCurrent,
}

impl Publisher {
    /// Publishes over this client.
    pub fn new(client: async_nats::Client, js: jetstream::Context) -> Self {
        Self { js, client }
    }

    /// Whether NATS is there at all, for readiness.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == State::Connected
    }

    /// Stores a webhook that arrived then. Ends at most [`BUDGET`] after that, whatever was done in between.
    pub async fn publish(
        &self,
        envelope: &Envelope,
        arrived: Instant,
    ) -> Result<Stored, NotStored> {
        let deadline = arrived + BUDGET;
        let mut last = String::from("NATS is away");
        while Instant::now() < deadline {
            // Without a connection the client would buffer, and memory would grow with every webhook.
            if self.is_connected() {
                let try_until = deadline.min(Instant::now() + TRY);
                match timeout_at(try_until, self.publish_once(envelope)).await {
                    Ok(Ok(stored)) => return Ok(stored),
                    Ok(Err(Refused::Full)) => return Err(NotStored::Full),
                    Ok(Err(Refused::Other(why))) => last = why,
                    Err(_) => last = "no answer from JetStream".into(),
                }
            }
            sleep_until(deadline.min(Instant::now() + PAUSE)).await;
        }
        Err(NotStored::Unconfirmed(last))
    }

    async fn publish_once(&self, envelope: &Envelope) -> Result<Stored, Refused> {
        let (subject, headers) = (envelope.subject(), envelope.headers());
        let ack =
            self.js.publish_with_headers(subject, headers, envelope.body.clone()).await?.await?;
        Ok(ack.into())
    }
}

enum Refused {
    Full,
    Other(String),
}

impl From<jetstream::context::PublishError> for Refused {
    fn from(error: jetstream::context::PublishError) -> Self {
        // The client has no kind of its own for a full stream; the server's code is in the cause.
        let code = error
            .source()
            .and_then(|cause| cause.downcast_ref::<jetstream::Error>())
            .map(jetstream::Error::error_code);
        match error.kind() {
            _ if code.is_some_and(|code| FULL.contains(&code)) => Refused::Full,
            PublishErrorKind::StreamNotFound => Refused::Other(
                "no stream listens (run: tidegate migrate), or it has no leader".into(),
            ),
            _ => Refused::Other(error.to_string()),
        }
    }
}
