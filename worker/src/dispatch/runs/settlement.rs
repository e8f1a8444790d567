//! Settlement of the run that an earlier attempt left, for a delivery that ends without a run: by
//! an answer in JSON, as a dead letter, or by a stop.
//!
//! Called by the scheduler's tasks before they record the end. Without it, the message in Slack
//! would stay open, and parts that are stored but not sent would be lost.

use super::{
    CancelReason, RunTarget,
    execution::WRITE_WAIT,
    run_id,
    writer::{WriteError, Writer},
};
use crate::{
    context::WorkerTerm,
    dispatch::{
        attempt_context::AttemptContext, outcome_recorder::RECORD_INTERVAL, payloads,
        retry::CRASHES_MAX, sessions::SessionKey,
    },
    routing::{self, Webhook},
};
use shared::{
    runtime::telemetry::ErrorChain,
    slack::BodyParts,
    store::{ClaimedDelivery, FinishedDelivery, FinishedOutcome, StoreError, StoredRun},
};
use std::sync::Arc;
use tracing::{info, warn};

/// Sends the parts that an earlier attempt stored, and ends their message. After a cancellation,
/// only ends the message. Returns `None` if the worker lost the lane.
pub async fn settle_stored_run(
    context: &Arc<AttemptContext>,
    term: &Arc<WorkerTerm>,
    finished: &FinishedDelivery,
) -> Option<()> {
    let delivery = &finished.delivery;
    // The first attempt has no run. After more crashes, the settlement itself may have crashed.
    if delivery.attempts == 1 || delivery.crashes > CRASHES_MAX || delivery.agent().is_none() {
        return Some(());
    }
    let Some(stored) = load(context, term, delivery).await? else { return Some(()) };
    let Some((target, key)) = target(context, delivery).await else {
        warn!(key = %delivery.dedup_key, "run left open: its question is unreadable");
        return Some(());
    };
    let is_cancelled = |outcome: &str| CancelReason::of_outcome(outcome).is_some();
    let discards = stored.state.ended.as_deref().is_some_and(is_cancelled)
        || matches!(finished.outcome, FinishedOutcome::Completed(outcome) if is_cancelled(outcome));
    let session = Arc::new(context.sessions.begin(key, term, true));
    let (context_of, term_of, settings) =
        (Arc::clone(context), Arc::clone(term), context.run_settings);
    let run = target.run.clone();
    let mut writer = Writer::new(context_of, term_of, delivery.clone(), target, settings, session);
    writer.adopt(stored);
    writer.is_last = true;
    let settling = async {
        match discards {
            true => writer.discard_unsent().await?,
            false => writer.settle().await?,
        }
        writer.end_segment().await
    };
    match tokio::time::timeout(WRITE_WAIT, settling).await {
        Ok(Ok(())) => info!(run, discards, "run of earlier attempt settled"),
        Ok(Err(WriteError::Fenced)) => return None,
        Ok(Err(error)) => warn!(run, ?error, "failed to settle run of earlier attempt"),
        Err(_) => warn!(run, "failed to settle run of earlier attempt in time"),
    }
    Some(())
}

/// Loads the run of a delivery, with retries. Returns `None` if the worker lost the lane.
async fn load(
    context: &AttemptContext,
    term: &WorkerTerm,
    delivery: &ClaimedDelivery,
) -> Option<Option<StoredRun>> {
    while term.holds() {
        match context.clients.store.stored_run(delivery.into()).await {
            Ok(stored) => return Some(stored),
            Err(error) => {
                warn!(key = %delivery.dedup_key, error = %ErrorChain(&error), "failed to load run");
                if matches!(error, StoreError::Inconsistent { .. }) {
                    return Some(None); // no attempt can read it
                }
            }
        }
        tokio::time::sleep(RECORD_INTERVAL).await;
    }
    None
}

/// Returns the target of a delivery's run. `None` if its webhook or connection cannot be read.
async fn target(
    context: &AttemptContext,
    delivery: &ClaimedDelivery,
) -> Option<(RunTarget, SessionKey)> {
    let connection =
        context.clients.connections.connection(delivery.key.connection).await.ok()??;
    let envelope = payloads::load(context, delivery).await.ok()?;
    let parts = BodyParts::split(envelope.media, &envelope.body);
    let webhook = Webhook { envelope: &envelope, inbound: parts.read() };
    let message = routing::agent_message(&webhook, connection.team.as_ref())?;
    let target = RunTarget::new(run_id(connection.id, &delivery.dedup_key), &message);
    Some((target, SessionKey::new(connection.id, &message)))
}
