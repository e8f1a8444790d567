//! Replays: a stretch of a connection's webhooks, read from the real stream and handled once more.
//!
//! In: a row of `replays`, leased by this worker. Out: for every webhook what became of it, or would have. Without effects
//! (the default of `tidegate replay`) agents are not called, nothing is committed and nothing said: what would be is
//! written down. With them, each is committed in the replay's own scope, one after the other in the order of the stream, and
//! agents hear a question as a new one. A worker that dies leaves its replay to the next, who goes on behind what was done.
//! Connections are hydrated as they are today: a replay is what would happen now.

use crate::{
    Workshop,
    agent::Record,
    commit::position,
    handle::{Done, Outcome},
    job::Job,
    part::Part,
    work::{self, backoff},
};
use async_nats::jetstream;
use shared::{
    codec::envelope::{DedupeKey, Envelope},
    follow::{Follow, Followed, Place, first_since},
    partition::Partition,
    store::{Committed, Owner, Replay, Replayed},
    stream::{self, STREAM},
    telemetry::Chain,
};
use std::{
    borrow::Cow,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, info, warn};

/// Between two looks for one that nobody works.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// A webhook is tried so often in place; then it is written down as failed, and the next has its turn.
const TRIES_MAX: i32 = 3;

type Broken = Box<dyn std::error::Error + Send + Sync>;

/// Works replays, one at a time, until told to stop.
pub async fn run(
    workshop: Arc<Workshop>,
    js: jetstream::Context,
    worker: String,
    ttl: Duration,
    stop: CancellationToken,
) {
    let working = async {
        loop {
            match workshop.store.claim_replay(&worker, ttl).await {
                Ok(Some(replay)) => one(&workshop, &js, &worker, ttl, &replay).await,
                Ok(None) => tokio::time::sleep(LOOK_EVERY).await,
                Err(error) => {
                    warn!(error = %Chain(&error), "replays can't be looked for");
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
    };
    tokio::select! { _ = stop.cancelled() => {}, () = working => {} }
}

async fn one(
    workshop: &Workshop,
    js: &jetstream::Context,
    worker: &str,
    ttl: Duration,
    replay: &Replay,
) {
    let (scope, apply) = (&replay.scope, replay.apply);
    info!(scope, apply, cursor = replay.cursor, "replaying");
    let believed = Believed::new(ttl);
    let ended = tokio::select! {
        ended = handle_all(workshop, js, worker, replay, &believed) => ended,
        () = renew(workshop, replay, ttl, &believed) => {
            warn!(scope, "the replay is somebody else's, or was called off");
            return;
        }
    };
    let why = ended.map_err(|error| Chain(&*error).to_string());
    info!(scope, ?why, "replayed");
    if let Err(error) =
        workshop.store.end_replay(replay, why.as_ref().copied().map_err(|why| why.as_str())).await
    {
        warn!(scope, error = %Chain(&error), "its end could not be written down; it is looked at again");
    }
}

/// Until when we may believe that the replay is ours.
struct Believed(Mutex<Instant>);

impl Believed {
    fn new(ttl: Duration) -> Self {
        Self(Mutex::new(Instant::now() + ttl))
    }

    fn until(&self) -> Instant {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn renew(&self, until: Instant) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

/// Renews the lease; ends when it is not ours any more.
async fn renew(workshop: &Workshop, replay: &Replay, ttl: Duration, believed: &Believed) {
    loop {
        tokio::time::sleep(ttl / 6).await;
        let until = Instant::now() + ttl;
        match workshop.store.renew_replay(replay, None, ttl).await {
            Ok(true) => believed.renew(until),
            Ok(false) => return,
            Err(error) => warn!(error = %Chain(&error), "a replay's lease could not be renewed"),
        }
        if believed.until() <= Instant::now() {
            return;
        }
    }
}

async fn handle_all(
    workshop: &Workshop,
    js: &jetstream::Context,
    worker: &str,
    replay: &Replay,
    believed: &Believed,
) -> Result<(), Broken> {
    let filter = format!("slack.in.*.{}", replay.connection);
    let stream = js.get_stream(STREAM).await?;
    let last = stream.cached_info().state.last_sequence;
    let name = format!("{}-e{}", replay.scope.replace(':', "-"), replay.epoch);
    let first = first_since(&stream, filter.clone(), replay.from, format!("{name}-since")).await?;
    let Some(first) = first else { return Ok(()) };
    let (dry, record) = without_effects(workshop);
    let acting = if replay.apply { workshop } else { &dry };
    let mut follow = Follow::new(js.clone(), STREAM, filter, name, first.max(replay.cursor + 1));
    let mut counted = false;
    loop {
        let (at, message) = match follow.next().await {
            Followed::Message(at, _) if at.stored_at >= replay.to => return Ok(()),
            Followed::Message(at, message) => (at, message),
            Followed::CaughtUp(through, _) if through >= last => return Ok(()),
            Followed::Opened(state) if state.last_sequence < last => {
                return Err("the stream was made anew while it was read".into());
            }
            Followed::CaughtUp(..) | Followed::Opened(_) => continue,
        };
        if !std::mem::replace(&mut counted, true) {
            let ttl = believed.until().saturating_duration_since(Instant::now());
            workshop.store.renew_replay(replay, Some(at.waiting + 1), ttl).await?;
        }
        let body = message.payload.clone();
        let envelope = Envelope::decode(&message.subject, message.headers.as_ref(), body);
        let (kind, (outcome, effects)) = match envelope {
            Ok(envelope) => {
                let kind = envelope.kind.as_str();
                let handling = handled(acting, replay, worker, at, envelope, believed);
                (kind, handling.await)
            }
            Err(why) => ("unknown", ("dead".into(), vec![why.to_string()])),
        };
        let mut all = record.take();
        all.extend(effects);
        let replayed = Replayed {
            sequence: at.sequence as i64,
            stored_at: None,
            kind: kind.to_owned(),
            outcome,
            effects: all,
        };
        let owner = owner(replay, worker, partition_of(&message.subject)?);
        if !workshop.store.note_replayed(&owner, at.stored_at, &replayed).await? {
            return Err("it is somebody else's, or was called off".into());
        }
        if at.waiting == 0 && at.sequence >= last {
            return Ok(());
        }
    }
}

fn partition_of(subject: &str) -> Result<Partition, Broken> {
    let place = stream::parse_subject(subject);
    place.map(|(partition, _)| partition).ok_or_else(|| "its subject is not ours".into())
}

fn owner(replay: &Replay, worker: &str, partition: Partition) -> Owner {
    Owner {
        scope: Cow::Owned(replay.scope.clone()),
        worker: worker.to_owned(),
        partition,
        epoch: replay.epoch,
        generation: 1,
    }
}

/// Handles one webhook; gives how that ended and what it changed, or would change.
async fn handled(
    workshop: &Workshop,
    replay: &Replay,
    worker: &str,
    at: Place,
    mut envelope: Envelope,
    believed: &Believed,
) -> (String, Vec<String>) {
    // A key of its own: agents know the old one, and would not do it again.
    envelope.dedupe = DedupeKey::stored(format!("{}:{}", envelope.dedupe, replay.scope));
    envelope.reply = None; // whoever waited for it is gone
    let owner = owner(replay, worker, envelope.partition);
    let part = Part::of_replay(owner, at.sequence, believed.until());
    let job = Job::once_more(at.sequence, envelope);
    let mut tries = 0;
    loop {
        part.believe_until(believed.until());
        let outcome = {
            let _slot = workshop.slots.take(job.envelope.connection, job.urgency()).await;
            work::handled(workshop, &part, &job).instrument(work::span(&job)).await
        };
        let word = outcome.as_str();
        tries += i32::from(!matches!(outcome, Outcome::Pause { .. })); // Postgres is waited for
        let cause = match outcome {
            Outcome::Done(done) => {
                let effects = described(&done);
                if !replay.apply {
                    return (done.effects.outcome.to_owned(), effects);
                }
                let outcome = done.effects.outcome;
                match commit(workshop, &part, &job, *done).await {
                    Ok(committed) => match committed {
                        Committed::Applied { .. } => return (outcome.to_owned(), effects),
                        Committed::AlreadyDone => return (outcome.to_owned(), Vec::new()),
                        Committed::Fenced => return ("fenced".into(), Vec::new()),
                        Committed::OrderSlip => return ("order slip".into(), Vec::new()),
                    },
                    Err(why) => why,
                }
            }
            Outcome::Dead { reason, error } => return ("dead".into(), vec![reason, error]),
            Outcome::Fault { error } => error,
            Outcome::Retry { cause } | Outcome::Park { cause } | Outcome::Pause { cause } => cause,
            Outcome::Return => "the lease ran out".into(),
        };
        if tries >= TRIES_MAX {
            return (word.into(), vec![cause]);
        }
        tokio::time::sleep(backoff(tries.max(1))).await;
    }
}

async fn commit(
    workshop: &Workshop,
    part: &Part,
    job: &Job,
    done: Done,
) -> Result<Committed, String> {
    let at = position(job);
    let mut effects = done.effects;
    effects.say.extend(done.answer.map(|answer| answer.late).unwrap_or_default());
    let committed = workshop.store.commit(&part.owner, &at, &effects).await;
    committed.map_err(|error| Chain(&error).to_string())
}

/// What would change, in words that are nobody's.
fn described(done: &Done) -> Vec<String> {
    let late = done.answer.iter().flat_map(|answer| &answer.late);
    let said = done.effects.say.iter().chain(late).map(|say| format!("say by {}", say.to.as_str()));
    let consumed = done.effects.consume.iter().map(|_| "consume a link claim".to_owned());
    let changed = done.effects.changes.iter().map(|change| change.what.as_str().to_owned());
    consumed.chain(changed).chain(said).collect()
}

/// The same workshop, but for agents: they are not called, and what they would have been asked is recorded.
fn without_effects(workshop: &Workshop) -> (Workshop, Record) {
    let (agents, record) = workshop.agents.recording();
    (Workshop { agents, ..workshop.clone() }, record)
}
