//! State of a partition that this worker owns.

use super::batch::CLAIMS_BEFORE_ALONE;
use crate::metrics::PartitionProgress;
use shared::{
    store::{FencingToken, Lease},
    stream::Partition,
};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// Partition that this worker owns, shared by the lease manager and the reader.
pub struct OwnedPartition {
    pub token: FencingToken,
    /// True if webhooks are decided one by one at first, because a process crashed.
    pub alone: bool,
    /// Cancelled to end the reader after the batch in progress.
    pub stop: CancellationToken,
    /// Cancelled when another worker owns the partition or the lease expired.
    pub lost: CancellationToken,
    /// Cancelled when the reader ended.
    pub finished: CancellationToken,
    /// Cancelled when the partition holds a webhook of a newer release.
    pub needs_newer: CancellationToken,
    /// Notified when a dead letter is to be redriven.
    pub redrive: Notify,
    holds_until: Mutex<Instant>,
    committed: AtomicU64,
    /// Progress for the metrics page.
    pub progress: Arc<PartitionProgress>,
}

impl OwnedPartition {
    /// Creates the state of a claimed partition. Its lease is valid until `holds_until` or longer.
    pub fn new(lease: &Lease, holds_until: Instant) -> Self {
        let Lease { token, state, claims, is_suspecting } = lease;
        Self {
            token: *token,
            alone: *is_suspecting || *claims >= CLAIMS_BEFORE_ALONE,
            stop: CancellationToken::new(),
            lost: CancellationToken::new(),
            finished: CancellationToken::new(),
            needs_newer: CancellationToken::new(),
            redrive: Notify::new(),
            holds_until: Mutex::new(holds_until),
            committed: AtomicU64::new(state.cursor),
            progress: Arc::new(PartitionProgress::new(token.partition)),
        }
    }

    pub fn partition(&self) -> Partition {
        self.token.partition
    }

    /// Returns whether the lease is valid by this process's clock. Postgres decides by epoch; this
    /// check only ends needless work.
    pub fn holds_lease(&self) -> bool {
        !self.lost.is_cancelled()
            && Instant::now() < *self.holds_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the cursor that Postgres confirmed last.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    pub fn record_committed(&self, cursor: u64) {
        self.committed.store(cursor, Ordering::Release);
    }

    pub fn extend_lease(&self, holds_until: Instant) {
        *self.holds_until.lock().unwrap_or_else(PoisonError::into_inner) = holds_until;
    }
}
