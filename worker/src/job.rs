//! A webhook on its way through a worker.

use crate::slots::Urgency;
use shared::{codec::envelope::Envelope, follow::Place, types::Kind};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;
use tokio::sync::OwnedSemaphorePermit;

/// A webhook in a worker's hands.
pub struct Job {
    /// Its sequence in the stream.
    pub sequence: u64,
    /// When the stream got it; unknown for what was set aside by an earlier release.
    pub stored_at: Option<OffsetDateTime>,
    /// The webhook.
    pub envelope: Envelope,
    /// It is handled once more, whatever was done before: redriven, or replayed.
    pub once_more: bool,
    /// Its place in the partition's window; free again when the job is dropped. What comes out of Postgres has none.
    _permit: Option<OwnedSemaphorePermit>,
}

impl Job {
    /// A job out of the stream, with its place in the window.
    pub fn read(at: Place, envelope: Envelope, permit: OwnedSemaphorePermit) -> Self {
        let Place { sequence, stored_at, .. } = at;
        let stored_at = Some(stored_at);
        Self { sequence, stored_at, envelope, once_more: false, _permit: Some(permit) }
    }

    /// A job that was set aside.
    pub fn set_aside(sequence: u64, envelope: Envelope) -> Self {
        Self { sequence, stored_at: None, envelope, once_more: false, _permit: None }
    }

    /// A job that is redriven or replayed.
    pub fn once_more(sequence: u64, envelope: Envelope) -> Self {
        Self { once_more: true, ..Self::set_aside(sequence, envelope) }
    }

    /// How long ago ingest had it.
    pub fn age(&self) -> Duration {
        let received = UNIX_EPOCH + Duration::from_millis(self.envelope.received_at_ms);
        SystemTime::now().duration_since(received).unwrap_or_default()
    }

    /// Whether a person waits for it.
    pub fn urgency(&self) -> Urgency {
        match self.envelope.kind {
            Kind::Command | Kind::Interaction | Kind::Options => Urgency::Person,
            Kind::Event | Kind::Unknown => Urgency::Nobody,
        }
    }
}
