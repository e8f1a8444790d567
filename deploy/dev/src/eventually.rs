//! Waits for conditions.
//!
//! All waits of the tests use this module. It checks the state repeatedly, so it misses no change,
//! and a slow machine costs time instead of a failure.

use std::future::Future;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(20);

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
        // A probe that hangs, as with a frozen server, must not exceed the deadline.
        let left = deadline.saturating_sub(started.elapsed()).max(PAUSE);
        if let Ok(Some(value)) = tokio::time::timeout(left, probe()).await {
            return Ok(value);
        }
        if started.elapsed() >= deadline {
            anyhow::bail!("{what}: not so within {deadline:?}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
