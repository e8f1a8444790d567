//! One more try for the dead, when a person asks for it.
//!
//! In: rows of `dead` that are marked. Out: each handled once more, past its lane's order: what came after it went on
//! without it long ago. Done, it leaves the dead in the transaction of its effects; failed, it stays there with what was
//! wrong, until a person asks again. Only for what is away (Postgres, Slack, an agent) it waits. Done by the partition's
//! owner, under its epoch, so that two workers can't both do it.

use crate::{
    Workshop, commit,
    handle::Outcome,
    job::Job,
    part::Part,
    work::{self, backoff},
};
use shared::{
    codec::envelope::Envelope,
    store::{DeadWebhook, StoreError},
    telemetry::Chain,
};
use std::{sync::Arc, time::Duration};
use tracing::{Instrument, info, warn};

/// Taken at once.
const BATCH: i64 = 16;
/// Another try of what was away.
const AGAIN_AFTER: Duration = Duration::from_secs(2);

/// Redrives for a partition until it is to stop or is lost.
pub async fn run(workshop: Arc<Workshop>, part: Arc<Part>) {
    loop {
        tokio::select! {
            _ = part.stop.cancelled() => return,
            _ = part.lost.cancelled() => return,
            _ = part.redrive.notified() => {}
        }
        if let Err(error) = some(&workshop, &part).await {
            warn!(error = %Chain(&error), "what is dead could not be redriven");
        }
    }
}

async fn some(workshop: &Workshop, part: &Part) -> Result<(), StoreError> {
    loop {
        let due = workshop.store.to_redrive(&part.owner, BATCH).await?;
        for dead in &due {
            if part.stop.is_cancelled() || !part.is_ours() {
                return Ok(());
            }
            let Some(failed) = one(workshop, part, dead).await else { continue };
            info!(dead = dead.id, sequence = dead.sequence, why = failed.why, again = ?failed.again_after, "not redriven");
            let Failed { why, again_after } = failed;
            workshop.store.redrive_failed(&part.owner, dead.id, &why, again_after).await?;
        }
        if due.len() < BATCH as usize {
            return Ok(());
        }
    }
}

struct Failed {
    why: String,
    again_after: Option<Duration>,
}

/// `None`: it is done, or somebody else's.
async fn one(workshop: &Workshop, part: &Part, dead: &DeadWebhook) -> Option<Failed> {
    let for_good = |why: String| Some(Failed { why, again_after: None });
    let for_now = |why: String| {
        Some(Failed { why, again_after: Some(AGAIN_AFTER.max(backoff(dead.attempts))) })
    };
    if let Some(why) = &dead.unreadable {
        return for_good(format!("its bytes can't be opened: {why}"));
    }
    let envelope = match Envelope::decode(
        &dead.subject,
        Some(&commit::unlisted(&dead.headers)),
        dead.body.clone().into(),
    ) {
        Ok(envelope) => envelope,
        Err(why) => return for_good(why.to_string()),
    };
    let job = Job::once_more(dead.sequence as u64, envelope);
    let _slot = workshop.slots.take(job.envelope.connection, job.urgency()).await;
    if !part.is_ours() || part.stop.is_cancelled() {
        return None;
    }
    let outcome = work::handled(workshop, part, &job).instrument(work::span(&job)).await;
    match outcome {
        Outcome::Done(mut done) => {
            // Nobody waits in an HTTP request any more.
            let late = done.answer.take().map(|answer| answer.late).unwrap_or_default();
            done.effects.say.extend(late);
            match commit::redriven(workshop, part, dead.id, &job, &done.effects).await {
                Ok(_) => None,
                Err(why) => for_good(format!("Postgres refuses its effects: {why}")),
            }
        }
        Outcome::Dead { reason, error } => for_good(format!("{reason}: {error}")),
        Outcome::Fault { error } => for_good(error),
        Outcome::Park { cause } => for_good(cause),
        Outcome::Retry { cause } | Outcome::Pause { cause } => for_now(cause),
        Outcome::Return => None,
    }
}
