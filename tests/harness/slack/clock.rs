//! Slack's own clock: an hour of retries, or a token's twelve hours, take no time in a test.
//!
//! In: moves, only forward. Out: the time by which this Slack spaces its retries, lets tokens, `trigger_id`s and `response_url`s
//! run out, and limits rates. What it signs bears the machine's time all the same: the gateway looks at a clock that nobody moves.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::Notify;

/// The hand of a clock; clones share it.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicU64>,
    moved: Arc<Notify>,
}

impl Clock {
    /// What it shows.
    pub fn now(&self) -> SystemTime {
        SystemTime::now() + Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// The second it shows.
    pub fn unix(&self) -> u64 {
        self.now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
    }

    /// Moves it forward.
    pub fn advance(&self, by: Duration) {
        self.ahead_ms.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
        self.moved.notify_waiters();
    }

    /// Waits until it shows this time, whether that comes or somebody moves the hand.
    pub async fn reaches(&self, time: SystemTime) {
        loop {
            let moved = self.moved.notified();
            let Ok(left) = time.duration_since(self.now()) else { return };
            tokio::select! {
                _ = moved => {}
                _ = tokio::time::sleep(left) => {}
            }
        }
    }
}
