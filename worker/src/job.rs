//! A webhook on its way through a worker.

use shared::codec::envelope::Envelope;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::OwnedSemaphorePermit;

/// A webhook on its way through a worker.
pub struct Job {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// The webhook.
    pub envelope: Envelope,
    /// Its place in the partition's window; free again when the job is dropped.
    _permit: OwnedSemaphorePermit,
}

impl Job {
    /// A job that holds its place in the window.
    pub fn new(sequence: u64, envelope: Envelope, permit: OwnedSemaphorePermit) -> Self {
        Self { sequence, envelope, _permit: permit }
    }

    /// How long ago ingest had it.
    pub fn age(&self) -> Duration {
        let received = UNIX_EPOCH + Duration::from_millis(self.envelope.received_at_ms);
        SystemTime::now().duration_since(received).unwrap_or_default()
    }
}
