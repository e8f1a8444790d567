//! Notices when it is not the webhooks that are broken.
//!
//! In: how handling ended, webhook by webhook. Out: whether most of it fails. Then nothing is given up: a bad deploy must
//! not fill `dead` with webhooks that the next one handles.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// What is looked back on.
const WINDOW: Duration = Duration::from_secs(60);
/// With fewer endings nothing is said.
const ENDINGS_MIN: usize = 20;
/// Endings kept at most.
const ENDINGS_MAX: usize = 1_000;

/// The last endings.
#[derive(Clone, Default)]
pub struct Breaker(Arc<Mutex<VecDeque<(Instant, bool)>>>);

impl Breaker {
    /// Handling ended well, or by a fault of its own.
    pub fn record(&self, well: bool) {
        self.record_at(well, Instant::now());
    }

    /// Whether most handling fails.
    pub fn is_open(&self) -> bool {
        self.is_open_at(Instant::now())
    }

    fn record_at(&self, well: bool, now: Instant) {
        let mut endings = self.endings();
        if endings.len() == ENDINGS_MAX {
            endings.pop_front();
        }
        endings.push_back((now, well));
    }

    fn is_open_at(&self, now: Instant) -> bool {
        let mut endings = self.endings();
        while endings.front().is_some_and(|(at, _)| now.duration_since(*at) > WINDOW) {
            endings.pop_front();
        }
        let failed = endings.iter().filter(|(_, well)| !well).count();
        endings.len() >= ENDINGS_MIN && failed * 2 > endings.len()
    }

    fn endings(&self) -> MutexGuard<'_, VecDeque<(Instant, bool)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_when_most_of_enough_fails_and_closes_when_that_is_over() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        for n in 0..19 {
            breaker.record_at(n % 2 == 0, start);
        }
        assert!(!breaker.is_open_at(start), "too few");
        for _ in 0..3 {
            breaker.record_at(false, start);
        }
        assert!(breaker.is_open_at(start), "12 of 22");
        assert!(!breaker.is_open_at(start + WINDOW * 2));
    }

    #[test]
    fn one_bad_webhook_among_good_ones_does_not_open_it() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        for n in 0..100 {
            breaker.record_at(n % 10 != 0, start);
        }
        assert!(!breaker.is_open_at(start));
    }
}
