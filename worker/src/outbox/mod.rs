//! The outbox stage: sends messages to Slack, in the order of each lane, at the pace that Slack takes.
//!
//! A message is marked before the call; one that was marked by a process that ended may have been sent, and is looked up before
//! it is sent again. Sends are tasks of their own under the term of the worker's row: when the row expires they are cancelled,
//! and whoever notices frees their lanes. On shutdown nothing more is claimed, and what is under way is finished.

mod reconcile;
mod response_url;
mod sender;
mod token_health;
mod web_api;

use crate::{
    batcher::{Batcher, each_result},
    context::{Context, WorkerTerm},
    slack::SEND_TIMEOUT,
};
use futures_util::FutureExt;
use shared::{
    partition::Lane,
    store::{
        ClaimPosition, OutboxMessage, SendAmbiguity, SendOutcome, SendRecord, Store, StoreError,
        UnreadableMessage,
    },
    telemetry::{self, Chain},
    types::{ConnectionId, Destination},
};
use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use token_health::TokenFailures;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, error, field, info, warn};

/// Messages under way at once in a worker.
const SENDS_MAX: usize = 128;
/// Without being woken, due messages are looked for this often; so are lanes that nobody sends.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// One message, whatever it waits for.
const SEND_DEADLINE: Duration = Duration::from_secs(8);
/// A message is left alone for this long after it was claimed: its call may still be under way.
const CLAIMED_FOR: Duration = Duration::from_secs(10);
const _: () = assert!(SEND_TIMEOUT.as_secs() < SEND_DEADLINE.as_secs());
const _: () = assert!(SEND_DEADLINE.as_secs() < CLAIMED_FOR.as_secs());
/// Wait before a result is recorded again, or after a call that took too long.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Wait for what another release, or a key that is missing, can read.
const UNREADABLE_WAIT: Duration = Duration::from_secs(60);
/// Attempts that ended the process or panicked, after which a message is given up.
const CRASHES_MAX: i32 = 5;
/// Lanes freed by one statement, at most.
const RELEASE_MAX: i64 = 1_000;
/// Shortest wait between two claims when messages wait for a limit.
const LIMITED_INTERVAL: Duration = Duration::from_millis(50);

type LaneKey = (ConnectionId, Lane);
/// Lanes of which a message is being sent, each with the turn of the last one that was claimed: the task of the message before
/// may still be at recording a result that is recorded.
type Running = HashMap<LaneKey, i64>;

/// What sends share.
struct Shared {
    context: Arc<Context>,
    token_failures: TokenFailures,
    recording: Batcher<SendRecord, Result<(), StoreError>>,
}

/// Sends until told to stop; then finishes what is under way.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let record = |store: Store, records: Vec<SendRecord>| async move {
        let recorded = store.record_send_results(&records).await;
        each_result(records.len(), recorded.map(|()| vec![(); records.len()]))
    };
    let recording = Batcher::new(&context.store, record);
    let token_failures = TokenFailures::default();
    let shared = Arc::new(Shared { context, token_failures, recording });
    let (mut sends, mut running) = (JoinSet::new(), Running::new());
    let mut polled = Instant::now();
    // Where the next claim begins; after the last connection, at the first.
    let mut after = None;
    let mut next_due: Option<Instant> = None;
    let mut poll = true;
    while !stop.is_cancelled() {
        if poll {
            polled = Instant::now();
            release_forgotten(&shared, &running).await;
        }
        // From here to the last connection, and once from the first to the last: whatever became due meanwhile is seen.
        let mut rounds = if after.is_none() { 1 } else { 2 };
        while rounds > 0 && sends.len() < SENDS_MAX {
            if after.is_none() {
                next_due = None;
            }
            let room = SENDS_MAX - sends.len();
            let Some(claimed) = claim(&shared, room, &mut after, &mut sends, &mut running).await
            else {
                next_due = None;
                break;
            };
            let due = claimed.next_due.map(|due| Instant::now() + due.max(LIMITED_INTERVAL));
            next_due = next_due.into_iter().chain(due).min();
            if after.is_none() {
                rounds -= 1;
                if claimed.messages > 0 && rounds == 0 {
                    rounds = 1; // the same channels may hold more that has no pace
                }
            }
        }
        let next_poll = polled + POLL_INTERVAL;
        let due = next_due.filter(|_| sends.len() < SENDS_MAX);
        let wake = due.map_or(next_poll, |due| due.min(next_poll));
        poll = false;
        tokio::select! {
            _ = stop.cancelled() => {}
            Some(sent) = sends.join_next(), if !sends.is_empty() => {
                ended(sent, &mut running);
                while let Some(sent) = sends.try_join_next() {
                    ended(sent, &mut running);
                }
            }
            _ = shared.context.wake_outbox.notified(), if sends.len() < SENDS_MAX => {}
            _ = tokio::time::sleep_until(wake) => poll = Instant::now() >= next_poll,
        }
    }
    let rest = async { while sends.join_next().await.is_some() {} };
    if tokio::time::timeout(CLAIMED_FOR, rest).await.is_err() {
        warn!("sends did not end in time; their lanes are freed when the worker's row expires");
    }
}

struct Claimed {
    messages: usize,
    next_due: Option<Duration>,
}

/// Claims once and starts what was claimed; `None` when nothing can be claimed now.
async fn claim(
    shared: &Arc<Shared>,
    room: usize,
    after: &mut Option<ClaimPosition>,
    sends: &mut JoinSet<(LaneKey, i64)>,
    running: &mut Running,
) -> Option<Claimed> {
    let context = &shared.context;
    let term = context.worker.term()?;
    let partitions = context.partitions.all();
    if partitions.is_empty() {
        return None;
    }
    let claimed = context.store.claim_outbox_messages(
        &term.id,
        &partitions,
        after.as_ref(),
        room as i64,
        CLAIMED_FOR,
        context.channel_min_interval,
    );
    let claimed = match claimed.await {
        Ok(claimed) => claimed,
        Err(error) => {
            // What an unknown result has claimed is freed with the next look for lanes that are not in memory.
            warn!(error = %Chain(&error), "failed to claim outbox messages");
            return None;
        }
    };
    let count = claimed.messages.len();
    *after = claimed.more;
    if claimed.missing > 0 {
        error!(lanes = claimed.missing, "outbox messages are missing; their lanes wait");
    }
    for unreadable in claimed.unreadable {
        record_unreadable(shared, &term, unreadable).await;
    }
    for message in claimed.messages {
        let (lane, turn) = ((message.connection, message.lane), message.turn);
        running.insert(lane, turn);
        let (shared, term) = (Arc::clone(shared), Arc::clone(&term));
        sends.spawn(async move {
            tokio::select! {
                () = send(&shared, &term, message) => {}
                _ = term.ended.cancelled() => {} // another worker frees its lane
            }
            (lane, turn)
        });
    }
    Some(Claimed { messages: count, next_due: claimed.next_due })
}

fn ended(sent: Result<(LaneKey, i64), tokio::task::JoinError>, running: &mut Running) {
    match sent {
        Ok((lane, turn)) if running.get(&lane) == Some(&turn) => drop(running.remove(&lane)),
        Ok(_) => {} // the next message of the lane is being sent
        Err(panic) => error!(%panic, "recording a send panicked"),
    }
}

/// Frees lanes that name this worker and are not in its memory.
async fn release_forgotten(shared: &Shared, running: &Running) {
    let Some(term) = shared.context.worker.term() else { return };
    let keep: Vec<LaneKey> = running.keys().copied().collect();
    let released = shared.context.store.release_outbox_lanes(&term.id, Some(&keep), RELEASE_MAX);
    match released.await {
        Ok(0) => {}
        Ok(lanes) => {
            warn!(lanes, "outbox lanes freed that this worker claimed without hearing of it")
        }
        Err(error) => warn!(error = %Chain(&error), "failed to look for forgotten outbox lanes"),
    }
}

async fn record_unreadable(shared: &Shared, term: &WorkerTerm, message: UnreadableMessage) {
    let UnreadableMessage { connection, lane, turn, attempts, why, may_be_readable } = message;
    error!(%connection, %lane, why, may_be_readable, "failed to read outbox message");
    let outcome = match may_be_readable {
        true => SendOutcome::Untried(UNREADABLE_WAIT, why),
        false => SendOutcome::Failed(why),
    };
    let (worker, ambiguity) = (term.id.clone(), SendAmbiguity::default());
    let record =
        SendRecord { connection, lane, worker, turn, attempts, outcome, ambiguity, crashed: false };
    if let Some(Err(error)) = shared.recording.run(record).await {
        warn!(error = %Chain(&error), "failed to record unreadable message");
    }
}

/// Sends a message and records how that ended. What cannot be recorded is found again as ambiguous.
async fn send(shared: &Shared, term: &WorkerTerm, message: OutboxMessage) {
    let (id, to, connection) = (message.id, message.outgoing.to.as_str(), message.connection);
    let mut ambiguity = SendAmbiguity { open: message.ambiguous, resent: false };
    let span = span(&message);
    let sending = async {
        if message.crashes >= CRASHES_MAX {
            return SendOutcome::Failed("sending it ended the process too often".into());
        }
        sender::send(shared, term, &message, &mut ambiguity).await
    };
    let sending = tokio::time::timeout(SEND_DEADLINE, sending.instrument(span.clone()));
    let sent = AssertUnwindSafe(sending).catch_unwind().await;
    let (outcome, crashed) = match sent {
        Ok(Ok(outcome)) => (outcome, false),
        Ok(Err(_)) => (SendOutcome::Ambiguous(RETRY_INTERVAL, "it took too long".into()), false),
        Err(_) if message.crashes + 1 >= CRASHES_MAX => {
            (SendOutcome::Failed("sending it panicked".into()), true)
        }
        Err(_) => (SendOutcome::Ambiguous(RETRY_INTERVAL, "sending it panicked".into()), true),
    };
    let outcome = match outcome {
        SendOutcome::Later(_, why)
        | SendOutcome::Ambiguous(_, why)
        | SendOutcome::Untried(_, why)
            if message.age > given_up_after(&message.outgoing.to) =>
        {
            SendOutcome::Failed(format!("given up after {:?}: {why}", message.age))
        }
        other => other,
    };
    match &outcome {
        SendOutcome::Sent => {
            info!(outbox = id, to, %connection, "message sent");
            shared.context.usage.record_reply(connection);
        }
        SendOutcome::Later(after, why) | SendOutcome::Untried(after, why) => {
            info!(outbox = id, to, %connection, ?after, why, "message postponed");
        }
        SendOutcome::Ambiguous(after, why) => {
            span.record("error.type", "ambiguous");
            warn!(outbox = id, to, %connection, ?after, why, "message may have been sent");
        }
        SendOutcome::Failed(why) => {
            span.record("error.type", "failed");
            warn!(outbox = id, to, %connection, why, "failed to send message");
        }
    }
    let record = SendRecord {
        connection,
        lane: message.lane,
        worker: message.worker,
        turn: message.turn,
        attempts: message.attempts,
        outcome,
        ambiguity,
        crashed,
    };
    while let Some(Err(error)) = shared.recording.run(record.clone()).await {
        warn!(outbox = id, error = %Chain(&error), "failed to record send result");
        if !term.holds() {
            return;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// A call to Slack: linked to the request that it answers.
fn span(message: &OutboxMessage) -> Span {
    let span = tracing::info_span!(
        target: "tidegate::trace",
        "send",
        otel.name = format!("send {}", message.outgoing.to.as_str()),
        otel.kind = "client",
        messaging.message.id = %message.dedup_key,
        error.type = field::Empty,
    );
    if let Some(traceparent) = &message.traceparent {
        telemetry::link(&span, traceparent);
    }
    span
}

/// A response_url without another way to its person is good for half an hour; anything else is attempted for a day.
fn given_up_after(to: &Destination) -> Duration {
    match to {
        Destination::ResponseUrl { fallback: None, .. } => Duration::from_secs(30 * 60),
        Destination::ResponseUrl { .. }
        | Destination::PostMessage { .. }
        | Destination::PostEphemeral { .. }
        | Destination::UpdateMessage { .. }
        | Destination::DirectMessage { .. }
        | Destination::OpenView { .. }
        | Destination::UpdateView { .. }
        | Destination::PublishView { .. } => Duration::from_secs(24 * 3600),
    }
}
