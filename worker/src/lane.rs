//! One webhook at a time per conversation, many conversations at once.
//!
//! In: the jobs of a partition, in the order of the stream. Out: each worked to its end before the next of its lane
//! begins. A lane exists while it has something to do: its first job starts a task, the last one ends it.

use crate::{
    Workshop, commit,
    handle::{self, Answer, Outcome},
    hydrate::{Hydrated, hydrate},
    job::Job,
    part::Part,
    reply,
};
use shared::{
    partition::Lane,
    telemetry::{self, Chain, DESTINATION},
    types::Outgoing,
};
use std::{
    collections::{HashMap, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tracing::{Instrument, Span, debug, info, warn};

/// A terminal fault is tried this often before the webhook is dead.
const FAULTS_MAX: i32 = 6;
/// A system fault is tried again until the webhook is this old.
const AGE_MAX: Duration = Duration::from_secs(24 * 3600);
/// Longest wait between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(30);

/// The lanes of one partition that have something to do.
pub struct Lanes {
    workshop: Arc<Workshop>,
    part: Arc<Part>,
    waiting: Waiting,
}

/// Jobs behind the one that runs, per lane. A lane that is not here is idle.
type Waiting = Arc<Mutex<HashMap<Lane, VecDeque<Job>>>>;

impl Lanes {
    /// All idle.
    pub fn new(workshop: Arc<Workshop>, part: Arc<Part>) -> Self {
        Self { workshop, part, waiting: Waiting::default() }
    }

    /// Puts a job at the end of its lane.
    pub fn push(&mut self, job: Job) {
        let lane = job.envelope.lane;
        match locked(&self.waiting).entry(lane) {
            Entry::Occupied(mut busy) => busy.get_mut().push_back(job),
            Entry::Vacant(idle) => {
                idle.insert(VecDeque::new());
                let (workshop, part) = (Arc::clone(&self.workshop), Arc::clone(&self.part));
                tokio::spawn(run(workshop, part, Arc::clone(&self.waiting), lane, job));
            }
        }
    }
}

fn locked(waiting: &Waiting) -> MutexGuard<'_, HashMap<Lane, VecDeque<Job>>> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(workshop: Arc<Workshop>, part: Arc<Part>, waiting: Waiting, lane: Lane, first: Job) {
    let mut job = first;
    loop {
        let finished = tokio::select! {
            _ = part.lost.cancelled() => false,
            finished = work(&workshop, &part, &job).instrument(span(&job)) => finished,
        };
        if !finished {
            // Nothing behind an unfinished webhook may run. When we don't stop anyway, the whole partition is let go:
            // whoever is next reads it again.
            if !part.stop.is_cancelled() {
                part.lost.cancel();
            }
            locked(&waiting).remove(&lane);
            return;
        }
        part.finish(job.sequence);
        let mut lanes = locked(&waiting);
        match lanes.get_mut(&lane).and_then(VecDeque::pop_front) {
            // What has not begun when we stop is left to the next owner.
            Some(_) if part.stop.is_cancelled() => {
                lanes.remove(&lane);
                return;
            }
            Some(next) => job = next,
            None => {
                lanes.remove(&lane);
                return;
            }
        }
    }
}

/// The processing of a webhook: linked to the request that brought it, not part of it.
fn span(job: &Job) -> Span {
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

/// Works a job to its end. False: it has none here, because the partition is lost or we stop.
async fn work(workshop: &Workshop, part: &Part, job: &Job) -> bool {
    let (mut attempt, mut faults) = (1, 0);
    loop {
        let outcome = try_once(workshop, part, job).await;
        let label = outcome.as_str();
        faults += i32::from(matches!(outcome, Outcome::Fault { .. }));
        match outcome {
            Outcome::Done(mut done) => {
                if let Some(answer) = done.answer.take() {
                    done.effects.say.extend(relayed_or_late(workshop, part, job, answer).await);
                }
                return commit::apply(workshop, part, job, &done.effects).await;
            }
            Outcome::Dead { reason, error } => {
                return commit::bury(workshop, part, job, &reason, &error, attempt).await;
            }
            Outcome::Fault { error } if faults >= FAULTS_MAX => {
                return commit::bury(workshop, part, job, "it failed too often", &error, attempt)
                    .await;
            }
            Outcome::Retry { cause } | Outcome::Park { cause } if job.age() > AGE_MAX => {
                return commit::bury(
                    workshop,
                    part,
                    job,
                    "it could not be handled for a day",
                    &cause,
                    attempt,
                )
                .await;
            }
            Outcome::Retry { cause }
            | Outcome::Park { cause }
            | Outcome::Fault { error: cause } => {
                info!(
                    sequence = job.sequence,
                    attempt,
                    outcome = label,
                    cause,
                    "to be tried again"
                );
            }
            Outcome::Return => {
                debug!(sequence = job.sequence, "returned untried");
                return false;
            }
        }
        tokio::select! {
            _ = part.stop.cancelled() => return false,
            _ = tokio::time::sleep(backoff(attempt)) => {}
        }
        attempt += 1;
    }
}

async fn try_once(workshop: &Workshop, part: &Part, job: &Job) -> Outcome {
    let Ok(_permit) = workshop.handlers.acquire().await else { return Outcome::Return };
    if part.stop.is_cancelled() {
        return Outcome::Return;
    }
    // Read before anything outside is called: after a crash this webhook may be done already.
    match workshop.store.is_seen(&job.envelope.dedupe).await {
        Ok(true) => return Outcome::done("done"),
        Ok(false) => {}
        Err(error) => return Outcome::Retry { cause: Chain(&error).to_string() },
    }
    match hydrate(&workshop.store, job.envelope.connection).await {
        Ok(Hydrated::Live(connection)) => handle::handle(workshop, part, &connection, job).await,
        Ok(Hydrated::Gone(why)) => {
            warn!(sequence = job.sequence, connection = %job.envelope.connection, why, "dropped");
            Outcome::done("dropped")
        }
        Ok(Hydrated::Pending) => Outcome::Park { cause: "the connection is pending".into() },
        Err(error) => Outcome::Retry { cause: Chain(&error).to_string() },
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

/// 0.2 s, doubling, with up to a quarter more so that lanes that failed together don't return together.
fn backoff(attempt: i32) -> Duration {
    use std::hash::{BuildHasher, RandomState};
    let base = Duration::from_millis(200 << attempt.clamp(1, 12)).min(BACKOFF_MAX);
    base + base.mul_f64((RandomState::new().hash_one(attempt) % 256) as f64 / 1024.0)
}
