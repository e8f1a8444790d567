//! A partition that this worker owns: the right to commit, and how far it is.

use crate::metrics::PartitionProgress;
use shared::{
    partition::Partition,
    store::{FencingToken, Lease},
};
use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};
use tokio::{sync::Notify, time::Instant};
use tokio_util::sync::CancellationToken;

/// A partition that this worker owns.
pub struct OwnedPartition {
    /// The right to commit.
    pub token: FencingToken,
    /// Claims since the cursor moved.
    pub claims: i32,
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
    committed: AtomicU64,
    /// How far it is, for the metrics page.
    pub progress: Arc<PartitionProgress>,
}

impl OwnedPartition {
    /// A partition just claimed, whose lease lasts at least until then.
    pub fn new(lease: &Lease, holds_until: Instant) -> Self {
        let Lease { token, state, claims } = lease;
        Self {
            token: *token,
            claims: *claims,
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

    /// Its number.
    pub fn partition(&self) -> Partition {
        self.token.partition
    }

    /// Whether the lease has not run out by this process's own clock. Postgres decides by epoch; this ends needless work.
    pub fn holds_lease(&self) -> bool {
        !self.lost.is_cancelled()
            && Instant::now() < *self.holds_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The cursor, as Postgres last confirmed it.
    pub fn committed(&self) -> u64 {
        self.committed.load(Ordering::Acquire)
    }

    /// Records a cursor that Postgres confirmed.
    pub fn record_committed(&self, cursor: u64) {
        self.committed.store(cursor, Ordering::Release);
    }

    /// Extends the lease after a renewal.
    pub fn extend_lease(&self, holds_until: Instant) {
        *self.holds_until.lock().unwrap_or_else(PoisonError::into_inner) = holds_until;
    }
}
