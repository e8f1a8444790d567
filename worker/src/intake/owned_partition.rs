//! A partition that this worker owns: the right to commit, and how far it is.

use crate::metrics::PartitionProgress;
use shared::{partition::Partition, store::FencingToken};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// A partition that this worker owns.
pub struct OwnedPartition {
    /// The right to commit.
    pub token: FencingToken,
    /// Whether webhooks are decided one by one at first, because a process ended.
    pub alone: bool,
    /// Read no further; the batch in progress ends.
    pub stop: CancellationToken,
    /// The partition is another worker's, or its lease ran out: drop everything.
    pub lost: CancellationToken,
    /// Nothing of it runs any more.
    pub finished: CancellationToken,
    /// Written by a newer release: this worker claims it no more.
    pub needs_newer: CancellationToken,
    /// A dead letter of it is to be decided again.
    pub redrive: Notify,
    holds_until: Mutex<Instant>,
    /// How far it is, for the metrics page.
    pub progress: Arc<PartitionProgress>,
}

impl OwnedPartition {
    /// A partition just claimed, whose lease lasts at least until then.
    pub fn new(token: FencingToken, alone: bool, holds_until: Instant) -> Self {
        Self {
            token,
            alone,
            stop: CancellationToken::new(),
            lost: CancellationToken::new(),
            finished: CancellationToken::new(),
            needs_newer: CancellationToken::new(),
            redrive: Notify::new(),
            holds_until: Mutex::new(holds_until),
            progress: Arc::new(PartitionProgress::new(token.partition)),
        }
    }

    /// Its number.
    pub fn partition(&self) -> Partition {
        self.token.partition
    }

    /// Whether the lease has not run out by this process's own clock. Postgres decides by epoch; this ends needless work.
    pub fn holds_lease(&self) -> bool {
        !self.lost.is_cancelled()
            && Instant::now() < *self.holds_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Extends the lease after a renewal.
    pub fn extend_lease(&self, holds_until: Instant) {
        *self.holds_until.lock().unwrap_or_else(PoisonError::into_inner) = holds_until;
    }
}
