//! Waiting for conditions.
//!
//! All waits of the tests use this module. It polls the condition, so a slow machine makes a test
//! slower, but does not fail it.

use std::future::Future;
use std::time::{Duration, Instant};

/// Interval between probes.
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// Calls `probe` until it returns a value.
///
/// # Panics
/// If `deadline` passes first. The message names `what`.
pub async fn eventually<T, F, Fut>(what: &str, deadline: Duration, probe: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    match try_eventually(what, deadline, probe).await {
        Ok(value) => value,
        Err(late) => panic!("{late}"),
    }
}

/// Calls `probe` until it returns a value.
///
/// # Errors
/// If `deadline` passes first. The error names `what`.
pub async fn try_eventually<T, F, Fut>(
    what: &str,
    deadline: Duration,
    mut probe: F,
) -> anyhow::Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        // A probe that hangs, for example on a frozen server, must not exceed the deadline.
        let left = deadline.saturating_sub(started.elapsed()).max(POLL_INTERVAL);
        if let Ok(Some(value)) = tokio::time::timeout(left, probe()).await {
            return Ok(value);
        }
        if started.elapsed() >= deadline {
            anyhow::bail!("{what}: not reached within {deadline:?}");
        }
        tokio::time::sleep(POLL_INTERVAL).await;
    }
}
