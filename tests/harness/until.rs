//! In: a condition to look at. Out: its value as soon as it holds, or a failure that names it.
//!
//! Every wait of the tests goes through here. It is level-triggered: it looks at the state again and
//! again, so it can miss no edge, and a slow machine costs time instead of a failure.

use std::future::Future;
use std::time::{Duration, Instant};

const PAUSE: Duration = Duration::from_millis(20);

/// Polls `probe` until it gives a value.
///
/// # Panics
/// When `deadline` passes first; the message names `what` was awaited.
pub async fn until<T, F, Fut>(what: &str, deadline: Duration, probe: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    match try_until(what, deadline, probe).await {
        Ok(value) => value,
        Err(late) => panic!("{late}"),
    }
}

/// Polls `probe` until it gives a value; an error that names `what` when `deadline` passes first.
///
/// # Errors
/// When the deadline passes.
pub async fn try_until<T, F, Fut>(what: &str, deadline: Duration, mut probe: F) -> anyhow::Result<T>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        // A probe that hangs (a frozen server answers nothing) must not outlive the deadline.
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
