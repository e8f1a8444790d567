//! Pauses between passes of claims, so that few statements claim many due rows.
//!
//! Used by dispatch and outbox. A claim costs Postgres nearly the same for one row as for many.
//! Without pauses, workers under load claim a few rows at a time, and claims take the time of
//! Postgres that commits need. The first pass after an idle time does not wait.

use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Pause after a pass, in multiples of its duration: a busy Postgres lengthens both.
const PAUSE_FACTOR: u32 = 2;
/// Maximum pause.
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Earliest time of the next pass.
#[derive(Debug, Default)]
pub struct ClaimPacer(Option<Instant>);

impl ClaimPacer {
    /// Waits for the end of the pause.
    pub async fn wait(&self) {
        if let Some(until) = self.0 {
            sleep_until(until).await;
        }
    }

    /// Starts the pause after a pass that began at `begun`.
    pub fn end(&mut self, begun: Instant) {
        let now = Instant::now();
        self.0 = Some(now + (now.duration_since(begun) * PAUSE_FACTOR).min(PAUSE_MAX));
    }
}
