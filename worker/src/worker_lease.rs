//! Lease of this process's row in `workers`: the right to run lanes.
//!
//! The lease manager renews the lease; each attempt and send checks it. A term that ended never
//! holds again, and at most one term holds at a time; the tests check this for random thread
//! schedules.

#[cfg(test)]
use shuttle::sync::{Arc, Mutex, MutexGuard};
use std::sync::PoisonError;
#[cfg(not(test))]
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Lease of this process's row in `workers`, which running lanes and agent slots reference. Other
/// workers free them when the row expires.
///
/// A process that does not renew its row in time loses all that it runs: the term ends, its tasks
/// are cancelled, and the next term has another id.
#[derive(Clone, Default)]
pub struct WorkerLease(Arc<Mutex<Option<Arc<WorkerTerm>>>>);

/// Uninterrupted period of the lease under one id.
pub struct WorkerTerm {
    /// Random id in `workers`, never reused.
    pub id: String,
    /// Cancelled when the term ends, which cancels calls to agents and Slack.
    pub ended: CancellationToken,
    holds_until: Mutex<Instant>,
}

impl WorkerTerm {
    /// Returns whether the row is valid by this process's monotonic clock. Checked before every
    /// call to an agent or Slack.
    pub fn holds(&self) -> bool {
        !self.ended.is_cancelled()
            && Instant::now() < *self.holds_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WorkerLease {
    /// Returns the current term, `None` while the process has no valid row.
    pub fn term(&self) -> Option<Arc<WorkerTerm>> {
        self.slot().clone().filter(|term| term.holds())
    }

    /// Begins a term under a new id and ends the previous one.
    pub fn begin(&self, id: String, holds_until: Instant) {
        let ended = CancellationToken::new();
        let term = WorkerTerm { id, ended, holds_until: Mutex::new(holds_until) };
        if let Some(before) = self.slot().replace(Arc::new(term)) {
            before.ended.cancel();
        }
    }

    pub fn extend(&self, holds_until: Instant) {
        if let Some(term) = &*self.slot() {
            *term.holds_until.lock().unwrap_or_else(PoisonError::into_inner) = holds_until;
        }
    }

    /// Ends the term and cancels its tasks if the row expired. Returns whether it did.
    pub fn end_if_expired(&self) -> bool {
        let mut slot = self.slot();
        let expired = slot.as_ref().is_some_and(|term| !term.holds());
        if expired && let Some(term) = slot.take() {
            term.ended.cancel();
        }
        expired
    }

    fn slot(&self) -> MutexGuard<'_, Option<Arc<WorkerTerm>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shuttle::thread;
    use std::time::Duration;

    const SCHEDULES: usize = 5_000;

    fn ids_that_hold(terms: &[Arc<WorkerTerm>]) -> Vec<&str> {
        terms.iter().filter(|term| term.holds()).map(|term| &*term.id).collect()
    }

    fn is_at(lease: &WorkerLease, id: &str) -> bool {
        lease.term().is_some_and(|term| term.id == id)
    }

    #[test]
    fn holds_at_most_one_term() {
        shuttle::check_random(
            || {
                let (past, future) = (Instant::now(), Instant::now() + Duration::from_secs(3600));
                let lease = WorkerLease::default();
                let manager = {
                    let lease = lease.clone();
                    thread::spawn(move || {
                        lease.begin("a".into(), future);
                        let first = lease.term();
                        if !lease.end_if_expired() {
                            lease.extend(future);
                        } else if let Some(first) = first {
                            assert!(first.ended.is_cancelled(), "tasks still run");
                        }
                        lease.begin("b".into(), future);
                        lease.extend(future);
                    })
                };
                // The row may expire at any moment.
                let clock = {
                    let lease = lease.clone();
                    thread::spawn(move || lease.extend(past))
                };
                let tasks: Vec<_> = (0..2)
                    .map(|_| {
                        let lease = lease.clone();
                        thread::spawn(move || {
                            let terms: Vec<_> = (0..4).filter_map(|_| lease.term()).collect();
                            let ended: Vec<bool> =
                                terms.iter().map(|term| term.ended.is_cancelled()).collect();
                            for (term, ended) in terms.iter().zip(ended) {
                                assert!(!(ended && term.holds()), "{} holds again", term.id);
                            }
                            let is_second = is_at(&lease, "b");
                            let holding = ids_that_hold(&terms);
                            assert!(!(is_second && holding.contains(&"a")), "two terms hold");
                        })
                    })
                    .collect();
                manager.join().expect("the manager");
                clock.join().expect("the clock");
                tasks.into_iter().for_each(|task| task.join().expect("a task"));
            },
            SCHEDULES,
        );
    }
}
