//! How many reads of the bucket made-up ids can cause: a bounded number.
//!
//! In: a key, and the time. Out: whether it may be read. A "no" is remembered for up to 2 s.

use shared::types::ConnectionId;
use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

/// Reads of the bucket in a second, at most.
const READS_PER_SECOND: u32 = 500;
/// "There is none" is believed for one to two of these.
const MISS_AGE: Duration = Duration::from_secs(1);
/// Ids remembered as unknown in one of these, at most.
const MISSES_MAX: usize = 20_000;
/// A connection whose signature failed is read again at most this often.
const REREAD_EVERY: Duration = Duration::from_secs(1);

/// What keeps reads of the bucket from becoming many.
pub(super) struct Bounds {
    window: Instant,
    reads: u32,
    misses: HashSet<String>,
    older_misses: HashSet<String>,
    rereads: HashMap<ConnectionId, Instant>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum MayRead {
    Yes,
    KnownMiss,
    TooMany,
}

impl Bounds {
    pub fn new(now: Instant) -> Self {
        let (misses, older_misses) = (HashSet::new(), HashSet::new());
        Self { window: now, reads: 0, misses, older_misses, rereads: HashMap::new() }
    }

    pub fn may_read(&mut self, key: &str, now: Instant) -> MayRead {
        let age = now.duration_since(self.window);
        if age >= MISS_AGE {
            self.older_misses = std::mem::take(&mut self.misses);
            if age >= 2 * MISS_AGE {
                self.older_misses.clear();
            }
            self.window = now;
            self.reads = 0;
        }
        if self.misses.contains(key) || self.older_misses.contains(key) {
            return MayRead::KnownMiss;
        }
        if self.reads == READS_PER_SECOND {
            return MayRead::TooMany;
        }
        self.reads += 1;
        MayRead::Yes
    }

    pub fn remember_miss(&mut self, key: &str) {
        if self.misses.len() < MISSES_MAX {
            self.misses.insert(key.to_owned());
        }
    }

    pub fn may_reread(&mut self, id: ConnectionId, now: Instant) -> bool {
        self.rereads.retain(|_, at| now.duration_since(*at) < REREAD_EVERY);
        if self.rereads.len() >= MISSES_MAX || self.rereads.contains_key(&id) {
            return false;
        }
        self.rereads.insert(id, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_ids_cost_a_bounded_number_of_reads_and_of_memory() {
        let start = Instant::now();
        let mut bounds = Bounds::new(start);
        let mut reads = 0;
        for n in 0..100_000 {
            let now = start + Duration::from_micros(n * 100); // 10,000 a second for 10 s
            if bounds.may_read(&format!("{n}"), now) == MayRead::Yes {
                bounds.remember_miss(&format!("{n}"));
                reads += 1;
            }
        }
        assert!(reads <= 10 * READS_PER_SECOND, "{reads}");
        assert!(bounds.misses.len() + bounds.older_misses.len() <= 2 * MISSES_MAX);
    }

    #[test]
    fn a_miss_is_believed_for_at_most_two_seconds() {
        let start = Instant::now();
        let mut bounds = Bounds::new(start);
        assert_eq!(bounds.may_read("x", start), MayRead::Yes);
        bounds.remember_miss("x");
        assert_eq!(bounds.may_read("x", start + MISS_AGE / 2), MayRead::KnownMiss);
        assert_eq!(bounds.may_read("x", start + MISS_AGE * 3 / 2), MayRead::KnownMiss);
        assert_eq!(bounds.may_read("x", start + MISS_AGE * 3), MayRead::Yes);
    }

    #[test]
    fn a_connection_is_reread_at_most_once_a_second() {
        let start = Instant::now();
        let mut bounds = Bounds::new(start);
        let id = format!("{:032x}", 1).parse().expect("an id");
        assert!(bounds.may_reread(id, start));
        assert!(!bounds.may_reread(id, start + REREAD_EVERY / 2));
        assert!(bounds.may_reread(id, start + REREAD_EVERY));
    }
}
