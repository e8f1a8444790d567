//! The right of this process to run lanes, as long as its row in `workers` is renewed.
//!
//! Written by the lease manager, read by every attempt and send. A term that has ended holds never again, and at most one term
//! holds at a time: the tests try orders of threads for that.

#[cfg(test)]
use shuttle::sync::{Arc, Mutex, MutexGuard};
use std::sync::PoisonError;
#[cfg(not(test))]
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The row of this process in `workers`. Running lanes and agent slots name it; when it expires, others free them.
///
/// A process that could not renew its row in time has lost everything that it runs: the term ends, its tasks are
/// cancelled, and the next term has another id.
#[derive(Clone, Default)]
pub struct WorkerLease(Arc<Mutex<Option<Arc<WorkerTerm>>>>);

/// One uninterrupted time under one id.
pub struct WorkerTerm {
    /// The id in `workers`: random, never used again.
    pub id: String,
    /// Cancelled when the term is over: calls to agents and Slack end at once.
    pub ended: CancellationToken,
    holds_until: Mutex<Instant>,
}

impl WorkerTerm {
    /// Whether the row has not expired by this process's own monotonic clock. Ask it before every outside call.
    pub fn holds(&self) -> bool {
        !self.ended.is_cancelled()
            && Instant::now() < *self.holds_until.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl WorkerLease {
    /// The current term; `None` while the process has no row in `workers`.
    pub fn term(&self) -> Option<Arc<WorkerTerm>> {
        self.slot().clone().filter(|term| term.holds())
    }

    /// Begins a term under a new id.
    pub fn begin(&self, id: String, holds_until: Instant) {
        let ended = CancellationToken::new();
        let term = WorkerTerm { id, ended, holds_until: Mutex::new(holds_until) };
        if let Some(before) = self.slot().replace(Arc::new(term)) {
            before.ended.cancel();
        }
    }

    /// Extends the current term.
    pub fn extend(&self, holds_until: Instant) {
        if let Some(term) = &*self.slot() {
            *term.holds_until.lock().unwrap_or_else(PoisonError::into_inner) = holds_until;
        }
    }

    /// Ends the term when it has run out; its tasks are cancelled.
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
    fn at_most_one_term_holds() {
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
                            assert!(first.ended.is_cancelled(), "its tasks go on");
                        }
                        lease.begin("b".into(), future);
                        lease.extend(future);
                    })
                };
                // Time runs out at any moment.
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
