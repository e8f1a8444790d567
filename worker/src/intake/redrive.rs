//! Decides dead letters of intake again when an operator requests it.
//!
//! Run by the owner of the partition under its fencing token. A redriven webhook is decided even if
//! it was processed before, and its effects are not in the order of its lane.

use super::owned_partition::OwnedPartition;
use crate::{
    context::Context,
    decider::{Decider, ReadWebhook},
};
use futures_util::FutureExt;
use shared::{
    runtime::telemetry::ErrorChain,
    store::{CommitOutcome, DeadLetter, Decision, StoreError},
    stream::{Envelope, pairs_to_headers},
};
use std::panic::AssertUnwindSafe;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use tracing::{info, warn};

/// Maximum number of dead letters per query.
const BATCH: i64 = 16;
/// Maximum number of starts of one redrive: each further start means that a process crashed.
const STARTS_MAX: i32 = 2;

/// Redrives the due dead letters of a partition whenever it is notified. Never returns.
pub async fn run(context: &Context, owned: &OwnedPartition, decider: &Decider) {
    loop {
        owned.redrive.notified().await;
        if let Err(error) = redrive_due(context, owned, decider).await {
            let (partition, error) = (owned.partition(), ErrorChain(&error));
            warn!(%partition, %error, "failed to redrive dead letters");
        }
    }
}

async fn redrive_due(
    context: &Context,
    owned: &OwnedPartition,
    decider: &Decider,
) -> Result<(), StoreError> {
    loop {
        let due = context.store.redriven_dead_letters(&[owned.partition()], BATCH).await?;
        for dead in &due {
            if owned.stop.is_cancelled() || !owned.holds_lease() {
                return Ok(());
            }
            let redriven = match context.store.start_redrive(dead.id).await? {
                None => continue,
                Some(starts) if starts > STARTS_MAX => {
                    Err("the process ended during the decision".to_owned())
                }
                // A panic would end the reader of the partition, and again at its next owner.
                Some(_) => AssertUnwindSafe(redrive_one(context, owned, decider, dead))
                    .catch_unwind()
                    .await
                    .unwrap_or_else(|_| Ok(Err("the decision panicked".to_owned())))?,
            };
            match redriven {
                Ok(()) => info!(dead_letter = dead.id, "dead letter redriven"),
                Err(reason) => {
                    info!(dead_letter = dead.id, reason, "failed to redrive dead letter");
                    context.store.record_redrive_failure(dead.id, &reason).await?;
                }
            }
        }
        if due.len() < BATCH as usize {
            return Ok(());
        }
    }
}

/// Redrives one dead letter. The inner error is the reason why it remains one.
async fn redrive_one(
    context: &Context,
    owned: &OwnedPartition,
    decider: &Decider,
    dead: &DeadLetter,
) -> Result<Result<(), String>, StoreError> {
    let read = match read_again(dead) {
        Ok(read) => read,
        Err(reason) => return Ok(Err(reason)),
    };
    let decided = decider.decide_again(&read).await?;
    if let Decision::DeadLetter { reason, error } = &decided.1.decision {
        return Ok(Err(format!("{reason} {error}").trim().to_owned()));
    }
    match context.store.commit_redriven(&owned.token, dead.id, &decided).await {
        Ok(CommitOutcome::Committed) => {
            context.wake_dispatch.notify_one();
            context.wake_outbox.notify_one();
            Ok(Ok(()))
        }
        // The dead letter was redriven or deleted meanwhile, or another worker owns the partition.
        Ok(CommitOutcome::NotMatched) => Ok(Ok(())),
        Err(error) if error.is_content_rejection() => {
            Ok(Err(format!("Postgres rejects the effects: {}", ErrorChain(&error))))
        }
        Err(error) => Err(error),
    }
}

fn read_again(dead: &DeadLetter) -> Result<ReadWebhook, String> {
    if let Some(reason) = &dead.unreadable {
        return Err(format!("the payload cannot be decrypted: {reason}"));
    }
    let headers = pairs_to_headers(&dead.headers);
    let envelope = Envelope::decode(&dead.subject, Some(&headers), dead.body.clone().into())
        .map_err(|reason| reason.to_string())?;
    let at = dead.at.as_deref().and_then(|at| OffsetDateTime::parse(at, &Rfc3339).ok());
    let stored_at = at.unwrap_or(OffsetDateTime::UNIX_EPOCH);
    Ok(ReadWebhook { sequence: dead.sequence as u64, stored_at, envelope })
}
