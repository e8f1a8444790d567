//! One try of a webhook, and what follows from it.
//!
//! In: a job. Out: finished (its effects are in force, or it is dead), or to be tried again, or left to whoever is next.
//! The handler decides ([`Outcome`]); one exhaustive match here carries it out, so that a new outcome does not compile
//! until somebody says what follows.

use crate::{
    Workshop, commit,
    handle::{self, Answer, Outcome},
    hydrate::Hydrated,
    job::Job,
    part::Part,
    reply,
};
use shared::{
    store::Trouble,
    telemetry::{self, DESTINATION},
    types::Outgoing,
};
use std::time::{Duration, Instant};
use tracing::{Span, debug, info, warn};

/// A webhook's own faults are counted; with so many it is dead.
pub const FAULTS_MAX: i32 = 6;
/// All else is tried again until the webhook is this old.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest wait between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// What became of a try.
pub enum Worked {
    /// It is over: done or dead, and written down.
    Finished,
    /// To be tried again. This says what was wrong.
    Again(String),
    /// Postgres is away: to be tried again, and nothing counts meanwhile.
    Paused(String),
    /// Not tried, or not written down: the partition is not ours any more, or we stop.
    Left,
}

/// Tries a webhook once. `trouble` is how it fared before, and is brought up to date.
pub async fn work(workshop: &Workshop, part: &Part, job: &Job, trouble: &mut Trouble) -> Worked {
    let outcome = try_once(workshop, part, job).await;
    let label = outcome.as_str();
    let finished = |finished: bool| match finished {
        true => {
            workshop.metrics.finished(job.age());
            Worked::Finished
        }
        false => Worked::Left,
    };
    let worked = match outcome {
        Outcome::Done(mut done) => {
            if let Some(answer) = done.answer.take() {
                done.effects.say.extend(relayed_or_late(workshop, part, job, answer).await);
            }
            workshop.breaker.record(true);
            finished(commit::apply(workshop, part, job, done.effects).await)
        }
        Outcome::Dead { reason, error } => {
            finished(commit::bury(workshop, part, job, &reason, &error, trouble.attempts + 1).await)
        }
        Outcome::Fault { error } => {
            workshop.breaker.record(false);
            trouble.faults += 1;
            // When most handling fails it is the handler that is broken, not the webhooks.
            if trouble.faults < FAULTS_MAX || workshop.breaker.is_open() {
                Worked::Again(error)
            } else {
                let reason = "it failed too often";
                finished(
                    commit::bury(workshop, part, job, reason, &error, trouble.attempts + 1).await,
                )
            }
        }
        Outcome::Retry { cause } | Outcome::Park { cause } => {
            if job.age() <= AGE_MAX {
                Worked::Again(cause)
            } else {
                let reason = "it could not be handled for a day";
                finished(
                    commit::bury(workshop, part, job, reason, &cause, trouble.attempts + 1).await,
                )
            }
        }
        Outcome::Pause { cause } => Worked::Paused(cause),
        Outcome::Return => Worked::Left,
    };
    match &worked {
        Worked::Again(cause) => {
            trouble.attempts += 1;
            trouble.wait = backoff(trouble.attempts);
            let (sequence, attempt, wait) = (job.sequence, trouble.attempts, trouble.wait);
            info!(sequence, attempt, outcome = label, cause, ?wait, "to be tried again");
        }
        Worked::Paused(cause) => warn!(sequence = job.sequence, cause, "waiting"),
        Worked::Left => debug!(sequence = job.sequence, "left to whoever is next"),
        Worked::Finished => {}
    }
    worked
}

async fn try_once(workshop: &Workshop, part: &Part, job: &Job) -> Outcome {
    let _slot = workshop.slots.take(job.envelope.connection, job.urgency()).await;
    if part.stop.is_cancelled() {
        return Outcome::Return;
    }
    let outcome = handled(workshop, part, job).await;
    match outcome {
        Outcome::Done(_) | Outcome::Pause { .. } | Outcome::Return => outcome,
        // What was done before a crash needs no second success.
        Outcome::Retry { .. }
        | Outcome::Park { .. }
        | Outcome::Fault { .. }
        | Outcome::Dead { .. } => {
            match workshop.seen.is_seen(&part.owner.scope, &job.envelope.dedupe).await {
                Ok(true) => Outcome::done("done"),
                Ok(false) => outcome,
                Err(error) => Outcome::of_store(&error),
            }
        }
    }
}

/// Hydrates and handles, whatever was done before.
pub async fn handled(workshop: &Workshop, part: &Part, job: &Job) -> Outcome {
    let began = Instant::now();
    let outcome = hydrated(workshop, part, job).await;
    workshop.metrics.tried(job.envelope.kind, outcome.as_str(), began.elapsed());
    outcome
}

async fn hydrated(workshop: &Workshop, part: &Part, job: &Job) -> Outcome {
    match workshop.hydrator.hydrate(job.envelope.connection).await {
        Ok(Hydrated::Live(connection)) => handle::handle(workshop, part, &connection, job).await,
        Ok(Hydrated::Gone(why)) => {
            warn!(sequence = job.sequence, connection = %job.envelope.connection, why, "dropped");
            Outcome::done("dropped")
        }
        Ok(Hydrated::Pending) => Outcome::Park { cause: "the connection is pending".into() },
        Err(error) => Outcome::of_store(&error),
    }
}

/// Gives an answer to the request that waits for it; what is left to say if none does.
async fn relayed_or_late(
    workshop: &Workshop,
    part: &Part,
    job: &Job,
    answer: Answer,
) -> Vec<Outgoing> {
    let window = job.envelope.reply.as_ref().filter(|_| part.is_ours());
    match window {
        Some(window) if reply::relay(&workshop.nats, window, answer.now).await => Vec::new(),
        _ => answer.late,
    }
}

/// The processing of a webhook: linked to the request that brought it, not part of it.
pub fn span(job: &Job) -> Span {
    let span = tracing::info_span!(
        target: "tidegate::trace",
        "process",
        otel.name = format!("process {DESTINATION}"),
        otel.kind = "consumer",
        messaging.system = "nats",
        messaging.operation.type = "process",
        messaging.destination.template = DESTINATION,
        messaging.message.id = %job.envelope.dedupe,
    );
    if let Some(traceparent) = &job.envelope.traceparent {
        telemetry::link(&span, traceparent);
    }
    span
}

/// 0.2 s, doubling, with up to a quarter more so that lanes that failed together don't return together.
pub fn backoff(attempt: i32) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let base =
        Duration::from_millis(200 << attempt.clamp(1, 12).saturating_sub(1)).min(BACKOFF_MAX);
    base + base.mul_f64((RandomState::new().hash_one(attempt) % 256) as f64 / 1024.0)
}
