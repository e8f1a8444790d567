//! Tasks of the scheduler: each executes one attempt or one run and records its outcome.

use super::{
    attempt::{self, AttemptOutcome, AttemptResult, RELEASE_WAIT},
    attempt_context::AttemptContext,
    runs::{self, StreamingRun},
};
use crate::context::WorkerTerm;
use futures_util::FutureExt;
use shared::store::ClaimedDelivery;
use std::{panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;

/// Wait of a delivery whose run exceeds the worker's limit. The next attempt asks the agent again.
const NO_ROOM_WAIT: Duration = Duration::from_secs(10);

/// Result of a task.
pub enum TaskEnd {
    /// The outcome is recorded, and the lane is due again after this time. `None` if it was not
    /// recorded.
    Recorded(Option<Duration>),
    /// The agent streams its answer.
    Streaming(Box<StreamingRun>, Arc<WorkerTerm>),
}

/// Signals that end an attempt early.
#[derive(Clone, Default)]
pub struct StopTokens {
    /// The worker stops: the delivery is released.
    pub release: CancellationToken,
    /// An operator cancelled the delivery.
    pub cancel: CancellationToken,
}

/// Runs an attempt and records its outcome, unless it continues as a run. Without capacity,
/// releases the delivery.
pub async fn attempt_and_record(
    context: &Arc<AttemptContext>,
    term: Arc<WorkerTerm>,
    delivery: ClaimedDelivery,
    has_capacity: bool,
    stop: &StopTokens,
) -> TaskEnd {
    let end = if has_capacity {
        let began = std::time::Instant::now();
        let running =
            AssertUnwindSafe(attempt_and_settle(context, &term, delivery.clone(), &stop.cancel));
        tokio::select! {
            end = running.catch_unwind() => match end {
                Ok(Some(end)) => end,
                Ok(None) => return TaskEnd::Recorded(None),
                Err(_) => {
                    AttemptResult::Ended(attempt::panicked_outcome(context, delivery, began))
                }
            },
            // Another worker frees the lane.
            _ = term.ended.cancelled() => return TaskEnd::Recorded(None),
            _ = stop.release.cancelled() => AttemptResult::Ended(stopped_outcome(delivery)),
        }
    } else {
        let error = "the worker had no capacity".to_owned();
        AttemptResult::Ended(attempt::released_outcome(delivery, RELEASE_WAIT, error))
    };
    match end {
        AttemptResult::Ended(end) => TaskEnd::Recorded(context.recorder.record(&term, end).await),
        AttemptResult::Streaming(run) => TaskEnd::Streaming(run, term),
    }
}

/// Runs an attempt until its end or `cancel`. If the delivery ends without a run, settles the run of
/// an earlier attempt. Returns `None` if the worker lost the lane.
async fn attempt_and_settle(
    context: &Arc<AttemptContext>,
    term: &Arc<WorkerTerm>,
    delivery: ClaimedDelivery,
    cancel: &CancellationToken,
) -> Option<AttemptResult> {
    let end = tokio::select! {
        end = attempt::run(context, term, delivery.clone()) => end,
        _ = cancel.cancelled() => AttemptResult::Ended(attempt::cancelled_outcome(delivery)),
    };
    match end {
        AttemptResult::Ended(AttemptOutcome::Finished(finished, change)) => {
            runs::settle_stored_run(context, term, &finished).await?;
            Some(AttemptResult::Ended(AttemptOutcome::Finished(finished, change)))
        }
        other => Some(other),
    }
}

/// Returns the outcome of an attempt or a run whose worker stops.
fn stopped_outcome(delivery: ClaimedDelivery) -> AttemptOutcome {
    runs::released_outcome_after(delivery, Duration::ZERO, "the worker stops".to_owned())
}

/// Executes a run and records its outcome. Returns the time after which the lane is due again,
/// `None` if another worker frees it.
pub async fn run_and_record(
    context: &Arc<AttemptContext>,
    term: &Arc<WorkerTerm>,
    run: StreamingRun,
    has_capacity: bool,
    stop: &StopTokens,
) -> Option<Duration> {
    let (delivery, began) = (run.delivery.clone(), std::time::Instant::now());
    let end = if has_capacity {
        let running = AssertUnwindSafe(runs::run(context, term, run, &stop.cancel));
        tokio::select! {
            end = running.catch_unwind() => match end {
                Ok(end) => end?,
                Err(_) => attempt::panicked_outcome(context, delivery, began),
            },
            _ = term.ended.cancelled() => return None, // another worker frees the lane
            _ = stop.release.cancelled() => stopped_outcome(delivery),
        }
    } else {
        let error = "the worker has too many runs".to_owned();
        runs::released_outcome_after(delivery, NO_ROOM_WAIT, error)
    };
    context.recorder.record(term, end).await
}
