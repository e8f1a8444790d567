//! Records the outcomes of attempts in Postgres, many per statement.
//!
//! Called by the scheduler's tasks. A record is retried until Postgres confirms it or the worker's
//! row expires; then another worker frees the lane.

use super::{attempt::AttemptOutcome, retry};
use crate::{
    batcher::{Batcher, each_result},
    context::{Context, WorkerTerm},
};
use shared::{
    runtime::telemetry::ErrorChain,
    store::{
        ClaimedDelivery, FinishedDelivery, FinishedOutcome, PostponedDelivery, Store, StoreError,
    },
};
use std::{sync::Arc, time::Duration};
use tracing::{info, warn};

/// Wait before a failed write to Postgres is retried.
pub const RECORD_INTERVAL: Duration = Duration::from_millis(250);

/// Recorder of outcomes. Owns the batchers that finish and postpone deliveries.
pub struct OutcomeRecorder {
    context: Arc<Context>,
    finishing: Batcher<Arc<FinishedDelivery>, Result<bool, StoreError>>,
    postponing: Batcher<PostponedDelivery, Result<bool, StoreError>>,
}

/// Outcome that one batched statement can record.
enum Record {
    Finished(Arc<FinishedDelivery>),
    Postponed(Box<PostponedDelivery>),
}

impl OutcomeRecorder {
    pub fn new(context: Arc<Context>) -> Self {
        let finish = |store: Store, finished: Vec<Arc<FinishedDelivery>>| async move {
            let finished: Vec<&FinishedDelivery> = finished.iter().map(|f| &**f).collect();
            match store.finish_deliveries(&finished).await {
                // A delivery that Postgres rejects must not fail the others of its batch.
                Err(error) if error.is_content_rejection() && finished.len() > 1 => {
                    let mut results = Vec::new();
                    for delivery in finished {
                        let result = store.finish_deliveries(&[delivery]).await;
                        results.push(result.map(|in_force| in_force == [true]));
                    }
                    results
                }
                result => each_result(finished.len(), result),
            }
        };
        let postpone = |store: Store, postponed: Vec<PostponedDelivery>| async move {
            each_result(postponed.len(), store.postpone_deliveries(&postponed).await)
        };
        let finishing = Batcher::new(&context.store, finish);
        let postponing = Batcher::new(&context.store, postpone);
        Self { context, finishing, postponing }
    }

    /// Records an outcome while the worker's row is valid. Returns the time after which the lane is
    /// due again. `None` if recording failed: the scheduler's next poll or another worker frees the
    /// lane.
    pub async fn record(&self, term: &WorkerTerm, outcome: AttemptOutcome) -> Option<Duration> {
        let mut record = match outcome {
            AttemptOutcome::Finished(finished, None) => Record::Finished(Arc::new(*finished)),
            AttemptOutcome::Finished(finished, Some(change)) => {
                let delivery = finished.delivery.clone();
                match self.context.store.finish_with_change(*finished, &change).await {
                    Ok(_) => {
                        self.context.wake_outbox.notify_one();
                        return Some(Duration::ZERO);
                    }
                    Err(error) => after_failed_change(delivery, &error),
                }
            }
            AttemptOutcome::Postponed(postponed) => Record::Postponed(Box::new(postponed)),
        };
        loop {
            let (delivery, result, after) = match &record {
                Record::Finished(finished) => {
                    let result = self.finishing.run(Arc::clone(finished)).await;
                    (&finished.delivery, result, Duration::ZERO)
                }
                Record::Postponed(postponed) => {
                    let result = self.postponing.run((**postponed).clone()).await;
                    (&postponed.delivery, result, postponed.after)
                }
            };
            let key = &delivery.dedup_key;
            match result? {
                Ok(true) => {
                    if let Record::Finished(finished) = &record {
                        self.follow_up(finished);
                    }
                    return Some(after);
                }
                Ok(false) => {
                    info!(%key, "attempt outcome fenced; lane freed before");
                    return Some(after);
                }
                Err(error) if error.is_content_rejection() => {
                    let error = ErrorChain(&error).to_string();
                    warn!(%key, error, "attempt outcome rejected by Postgres");
                    match record {
                        // The contents of the messages are the likely cause.
                        Record::Finished(finished) if !finished.messages.is_empty() => {
                            let delivery = finished.delivery.clone();
                            record = Record::Finished(Arc::new(refused(
                                delivery,
                                "Postgres rejects the messages",
                                error,
                            )));
                        }
                        _ => return None,
                    }
                }
                Err(error) => {
                    warn!(%key, error = %ErrorChain(&error), "failed to record attempt outcome");
                    if !term.holds() {
                        return None;
                    }
                    tokio::time::sleep(RECORD_INTERVAL).await;
                }
            }
        }
    }

    /// Wakes the outbox and counts dead letters after a record.
    fn follow_up(&self, finished: &FinishedDelivery) {
        if !finished.messages.is_empty() {
            self.context.wake_outbox.notify_one();
        }
        if matches!(finished.outcome, FinishedOutcome::DeadLetter { .. }) {
            self.context.metrics.record_dead_letters(1);
        }
    }
}

/// Returns the record of an attempt whose change was not committed: a dead letter if Postgres
/// rejects its contents, otherwise another attempt.
fn after_failed_change(delivery: ClaimedDelivery, error: &StoreError) -> Record {
    let (key, is_rejected) = (&delivery.dedup_key, error.is_content_rejection());
    let error = ErrorChain(error).to_string();
    warn!(%key, error, is_rejected, "failed to record attempt outcome with its change");
    if is_rejected {
        let dead = refused(delivery, "Postgres rejects the effects", error);
        return Record::Finished(Arc::new(dead));
    }
    let after = retry::backoff(delivery.attempts, 0.0);
    let (counts, fault, crashed) = (true, false, false);
    let postponed = PostponedDelivery { delivery, after, error, counts, fault, crashed };
    Record::Postponed(Box::new(postponed))
}

/// Returns the dead letter of a delivery whose outcome Postgres rejects.
fn refused(delivery: ClaimedDelivery, reason: &str, error: String) -> FinishedDelivery {
    let outcome = FinishedOutcome::DeadLetter { reason: reason.to_owned(), error };
    FinishedDelivery { delivery, outcome, messages: Vec::new(), traceparent: None }
}
