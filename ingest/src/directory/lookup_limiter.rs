//! Limits on bucket reads, so that requests with made-up ids cause a bounded number of them.

use shared::domain::ConnectionId;
use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

/// Maximum reads of the bucket in a window.
const MAX_READS_PER_SECOND: u32 = 500;
/// Length of a window. A miss is cached for one to two windows.
const WINDOW: Duration = Duration::from_secs(1);
/// Maximum misses cached in one window, and maximum connections refreshed in one interval.
const MAX_MISSES: usize = 20_000;
/// Minimum time between two refreshes of a connection.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// Counts of reads and misses in the current window.
pub(super) struct LookupLimiter {
    window_start: Instant,
    reads: u32,
    misses: HashSet<String>,
    previous_misses: HashSet<String>,
    refreshes: HashMap<ConnectionId, Instant>,
}

/// Decision on a read of the bucket.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LookupDecision {
    Allowed,
    KnownMiss,
    LimitReached,
}

impl LookupLimiter {
    pub fn new(now: Instant) -> Self {
        Self {
            window_start: now,
            reads: 0,
            misses: HashSet::new(),
            previous_misses: HashSet::new(),
            refreshes: HashMap::new(),
        }
    }

    /// Decides whether a key may be read, and counts an allowed read.
    pub fn check_lookup(&mut self, key: &str, now: Instant) -> LookupDecision {
        let age = now.duration_since(self.window_start);
        if age >= WINDOW {
            self.previous_misses = std::mem::take(&mut self.misses);
            if age >= 2 * WINDOW {
                self.previous_misses.clear();
            }
            self.window_start = now;
            self.reads = 0;
        }
        if self.misses.contains(key) || self.previous_misses.contains(key) {
            return LookupDecision::KnownMiss;
        }
        if self.reads == MAX_READS_PER_SECOND {
            return LookupDecision::LimitReached;
        }
        self.reads += 1;
        LookupDecision::Allowed
    }

    /// Records that the bucket does not have a key.
    pub fn record_miss(&mut self, key: &str) {
        if self.misses.len() < MAX_MISSES {
            self.misses.insert(key.to_owned());
        }
    }

    /// Returns whether a connection may be refreshed now, and records the refresh.
    pub fn allow_refresh(&mut self, id: ConnectionId, now: Instant) -> bool {
        self.refreshes.retain(|_, at| now.duration_since(*at) < REFRESH_INTERVAL);
        if self.refreshes.len() >= MAX_MISSES || self.refreshes.contains_key(&id) {
            return false;
        }
        self.refreshes.insert(id, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_reads_and_memory() {
        let start = Instant::now();
        let mut limiter = LookupLimiter::new(start);
        let mut reads = 0;
        for n in 0..100_000 {
            let now = start + Duration::from_micros(n * 100); // 10,000 per second for 10 s
            if limiter.check_lookup(&format!("{n}"), now) == LookupDecision::Allowed {
                limiter.record_miss(&format!("{n}"));
                reads += 1;
            }
        }
        assert!(reads <= 10 * MAX_READS_PER_SECOND, "{reads}");
        assert!(limiter.misses.len() + limiter.previous_misses.len() <= 2 * MAX_MISSES);
    }

    #[test]
    fn caches_miss_for_two_windows() {
        let start = Instant::now();
        let mut limiter = LookupLimiter::new(start);
        assert_eq!(limiter.check_lookup("x", start), LookupDecision::Allowed);
        limiter.record_miss("x");
        let mut check = |after| limiter.check_lookup("x", start + after);
        assert_eq!(check(WINDOW / 2), LookupDecision::KnownMiss);
        assert_eq!(check(WINDOW * 3 / 2), LookupDecision::KnownMiss);
        assert_eq!(check(WINDOW * 3), LookupDecision::Allowed);
    }

    #[test]
    fn refreshes_once_per_interval() {
        let start = Instant::now();
        let mut limiter = LookupLimiter::new(start);
        let id = format!("{:032x}", 1).parse().expect("valid id");
        assert!(limiter.allow_refresh(id, start));
        assert!(!limiter.allow_refresh(id, start + REFRESH_INTERVAL / 2));
        assert!(limiter.allow_refresh(id, start + REFRESH_INTERVAL));
    }
}
