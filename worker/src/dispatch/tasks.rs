//! Tasks of the scheduler: one attempt, or one run, and the record of its outcome.

use super::{
    attempt::{self, Attempted, RELEASE_WAIT},
    attempt_context::AttemptContext,
    runs::{self, StreamingRun},
};
use crate::context::WorkerTerm;
use futures_util::FutureExt;
use shared::store::ClaimedDelivery;
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// End of a task.
pub enum TaskEnd {
    /// The outcome is recorded. The lane is due again after this time, if it is known.
    Recorded(Option<Duration>),
    /// The agent streams its answer.
    Streaming(Box<StreamingRun>, Arc<WorkerTerm>),
}

/// Signals that end an attempt early.
#[derive(Clone, Default)]
pub struct StopTokens {
    /// The worker stops: the delivery waits, and the attempt does not count.
    pub release: CancellationToken,
    /// An operator cancelled the delivery.
    pub cancel: CancellationToken,
}

/// Runs an attempt and records its outcome, unless it goes on as a run.
pub async fn attempt_and_record(
    context: &AttemptContext,
    term: Arc<WorkerTerm>,
    delivery: ClaimedDelivery,
    has_capacity: bool,
    stop: &StopTokens,
) -> TaskEnd {
    let released = |delivery, error: &str| {
        Attempted::Ended(attempt::released_outcome(delivery, RELEASE_WAIT, error.to_owned()))
    };
    let end = match has_capacity {
        false => released(delivery, "the worker had no capacity"),
        true => {
            let began = std::time::Instant::now();
            let running = AssertUnwindSafe(attempt::run(context, &term, delivery.clone()));
            tokio::select! {
                end = running.catch_unwind() => end.unwrap_or_else(|_| {
                    Attempted::Ended(attempt::panicked_outcome(context, delivery, began))
                }),
                // Another worker frees its lane.
                _ = term.ended.cancelled() => return TaskEnd::Recorded(None),
                _ = stop.release.cancelled() => released(delivery, "the worker stops"),
                _ = stop.cancel.cancelled() => {
                    Attempted::Ended(attempt::cancelled_outcome(delivery))
                }
            }
        }
    };
    match end {
        Attempted::Ended(end) => TaskEnd::Recorded(context.recorder.record(&term, end).await),
        Attempted::Streaming(run) => TaskEnd::Streaming(run, term),
    }
}

/// Executes a run and records its outcome. Returns the time after which the lane is due again.
pub async fn run_and_record(
    context: &Arc<AttemptContext>,
    term: &Arc<WorkerTerm>,
    run: StreamingRun,
    has_room: bool,
    stop: &StopTokens,
) -> Option<Duration> {
    let (delivery, began) = (run.delivery.clone(), std::time::Instant::now());
    let end = if has_room {
        let running = AssertUnwindSafe(runs::run(context, term, run, &stop.cancel));
        tokio::select! {
            end = running.catch_unwind() => match end {
                Ok(end) => end?,
                Err(_) => attempt::panicked_outcome(context, delivery, began),
            },
            _ = term.ended.cancelled() => return None, // another worker frees its lane
            _ = stop.release.cancelled() => runs::released_outcome(delivery),
        }
    } else {
        let error = "the worker has too many runs".to_owned();
        attempt::released_outcome(delivery, RELEASE_WAIT, error)
    };
    context.recorder.record(term, end).await
}
