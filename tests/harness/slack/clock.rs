//! Clock of the simulated Slack, which tests move forward instead of waiting.
//!
//! The clock controls retries, the expiry of tokens, `trigger_id`s and `response_url`s, and rate
//! limits. Signatures use the time of the machine, because the gateway compares them with its own
//! clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::Notify;

/// A clock. Clones share their time.
#[derive(Debug, Clone, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicU64>,
    moved: Arc<Notify>,
}

impl Clock {
    /// Returns the time.
    pub fn now(&self) -> SystemTime {
        SystemTime::now() + Duration::from_millis(self.ahead_ms.load(Ordering::Relaxed))
    }

    /// Returns the time in seconds since 1970.
    pub fn unix(&self) -> u64 {
        self.now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
    }

    /// Moves the clock forward.
    pub fn advance(&self, by: Duration) {
        self.ahead_ms.fetch_add(by.as_millis() as u64, Ordering::Relaxed);
        self.moved.notify_waiters();
    }

    /// Waits until the clock reaches a time.
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
