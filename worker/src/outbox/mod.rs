//! Outbox: sends messages to Slack, in order per lane, within Slack's rate limits.
//!
//! Run by `app`. A message is marked before the call. A marked message of a process that crashed
//! may have been sent, so it is looked up before it is sent again. Sends are tasks under the term
//! of the worker's row: when the row expires they are cancelled, and another worker frees their
//! lanes. On shutdown nothing more is claimed, and running sends end.

mod reconcile;
mod response_url;
mod sender;
mod token_health;
mod web_api;

use crate::{
    batcher::{Batcher, each_result},
    claim_pacer::ClaimPacer,
    context::{Context, WorkerTerm},
    slack::SEND_TIMEOUT,
};
use futures_util::FutureExt;
use shared::{
    domain::{ConnectionId, Destination},
    runtime::telemetry::{self, ErrorChain},
    store::{
        ClaimPosition, OutboxMessage, SendAmbiguity, SendOutcome, SendRecord, Store, StoreError,
        UnreadableMessage,
    },
    stream::Lane,
};
use std::{collections::HashMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use token_health::TokenFailures;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span, error, field, info, warn};

/// Maximum number of running sends in a worker.
const SENDS_MAX: usize = 128;
/// Interval of looking for due messages and orphaned lanes without a wake-up.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// Maximum duration of one send.
const SEND_DEADLINE: Duration = Duration::from_secs(8);
/// Time for which a claimed message is not claimed again, since its call may still run.
const CLAIMED_FOR: Duration = Duration::from_secs(10);
const _: () = assert!(SEND_TIMEOUT.as_secs() < SEND_DEADLINE.as_secs());
const _: () = assert!(SEND_DEADLINE.as_secs() < CLAIMED_FOR.as_secs());
/// Wait before a result is recorded again, or after a send that timed out.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Wait before a message is claimed again that another release or key may be able to read.
const UNREADABLE_WAIT: Duration = Duration::from_secs(60);
/// Number of crashed attempts after which a message is given up on.
const CRASHES_MAX: i32 = 5;
/// Maximum number of lanes freed by one statement.
const RELEASE_MAX: i64 = 1_000;
/// Minimum wait between two claims when messages wait for a rate limit.
const LIMITED_INTERVAL: Duration = Duration::from_millis(50);

type LaneKey = (ConnectionId, Lane);
/// Lanes that are being sent, with the turn of the last claimed message: the task of the previous
/// message may end later.
type RunningSends = HashMap<LaneKey, i64>;

struct SendShared {
    context: Arc<Context>,
    token_failures: TokenFailures,
    recording: Batcher<SendRecord, Result<(), StoreError>>,
}

/// Sends messages until `stop`, then waits for running sends.
pub async fn run(context: Arc<Context>, stop: CancellationToken) {
    let record = |store: Store, records: Vec<SendRecord>| async move {
        let recorded = store.record_send_results(&records).await;
        each_result(records.len(), recorded.map(|()| vec![(); records.len()]))
    };
    let recording = Batcher::new(&context.store, record);
    let token_failures = TokenFailures::default();
    let shared = Arc::new(SendShared { context, token_failures, recording });
    let (mut sends, mut running) = (JoinSet::new(), RunningSends::new());
    let mut polled = Instant::now();
    // Position at which the next claim begins. `None` is the first connection.
    let mut after = None;
    let mut next_due: Option<Instant> = None;
    let mut poll = true;
    let mut pacer = ClaimPacer::default();
    while !stop.is_cancelled() {
        pacer.wait().await;
        while let Some(sent) = sends.try_join_next() {
            remove_ended(sent, &mut running);
        }
        let begun = Instant::now();
        if poll {
            polled = Instant::now();
            release_orphaned_lanes(&shared, &running).await;
        }
        // One round up to the last connection, then one over all connections, for messages that
        // became due meanwhile.
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
                    rounds = 1; // the same channels may have messages without a rate limit
                }
            }
        }
        pacer.end(begun);
        let next_poll = polled + POLL_INTERVAL;
        let due = next_due.filter(|_| sends.len() < SENDS_MAX);
        let wake = due.map_or(next_poll, |due| due.min(next_poll));
        poll = false;
        tokio::select! {
            _ = stop.cancelled() => {}
            Some(sent) = sends.join_next(), if !sends.is_empty() => {
                remove_ended(sent, &mut running);
            }
            _ = shared.context.wake_outbox.notified(), if sends.len() < SENDS_MAX => {}
            _ = tokio::time::sleep_until(wake) => poll = Instant::now() >= next_poll,
        }
    }
    let rest = async { while sends.join_next().await.is_some() {} };
    if tokio::time::timeout(CLAIMED_FOR, rest).await.is_err() {
        warn!("failed to end all sends in time");
    }
}

struct ClaimSummary {
    messages: usize,
    next_due: Option<Duration>,
}

/// Claims once and starts the sends. Returns `None` when nothing can be claimed now.
async fn claim(
    shared: &Arc<SendShared>,
    room: usize,
    after: &mut Option<ClaimPosition>,
    sends: &mut JoinSet<(LaneKey, i64)>,
    running: &mut RunningSends,
) -> Option<ClaimSummary> {
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
            // If the claim succeeded nevertheless, the next poll frees its lanes.
            warn!(error = %ErrorChain(&error), "failed to claim outbox messages");
            return None;
        }
    };
    let count = claimed.messages.len();
    *after = claimed.more;
    if claimed.missing > 0 {
        error!(lanes = claimed.missing, "outbox messages missing; their lanes wait");
    }
    for unreadable in claimed.unreadable {
        record_unreadable(shared, &term, unreadable).await;
    }
    for message in claimed.messages {
        let (lane, turn) = ((message.connection, message.lane), message.turn);
        running.insert(lane, turn);
        let (shared, term) = (Arc::clone(shared), Arc::clone(&term));
        sends.spawn(async move {
            let sending = AssertUnwindSafe(send(&shared, &term, message)).catch_unwind();
            tokio::select! {
                // The next poll frees the lane of a send that panicked.
                sent = sending => if sent.is_err() { error!("send task panicked") },
                _ = term.ended.cancelled() => {} // another worker frees its lane
            }
            (lane, turn)
        });
    }
    Some(ClaimSummary { messages: count, next_due: claimed.next_due })
}

fn remove_ended(sent: Result<(LaneKey, i64), tokio::task::JoinError>, running: &mut RunningSends) {
    match sent {
        Ok((lane, turn)) if running.get(&lane) == Some(&turn) => drop(running.remove(&lane)),
        Ok(_) => {} // the next message of the lane is being sent
        Err(error) => error!(%error, "send task cancelled"),
    }
}

/// Frees lanes that this worker has claimed in Postgres but does not run.
async fn release_orphaned_lanes(shared: &SendShared, running: &RunningSends) {
    let Some(term) = shared.context.worker.term() else { return };
    let keep: Vec<LaneKey> = running.keys().copied().collect();
    let released = shared.context.store.release_outbox_lanes(&term.id, Some(&keep), RELEASE_MAX);
    match released.await {
        Ok(0) => {}
        Ok(lanes) => {
            warn!(lanes, "outbox lanes freed after claims with unknown results")
        }
        Err(error) => warn!(error = %ErrorChain(&error), "failed to free orphaned outbox lanes"),
    }
}

async fn record_unreadable(shared: &SendShared, term: &WorkerTerm, message: UnreadableMessage) {
    let UnreadableMessage { connection, lane, turn, attempts, why: reason, may_be_readable } =
        message;
    error!(%connection, %lane, reason, may_be_readable, "failed to read outbox message");
    let outcome = match may_be_readable {
        true => SendOutcome::Untried(UNREADABLE_WAIT, reason),
        false => SendOutcome::Failed(reason),
    };
    let (worker, ambiguity) = (term.id.clone(), SendAmbiguity::default());
    let record =
        SendRecord { connection, lane, worker, turn, attempts, outcome, ambiguity, crashed: false };
    if let Some(Err(error)) = shared.recording.run(record).await {
        warn!(error = %ErrorChain(&error), "failed to record unreadable message");
    }
}

/// Sends a message and records the result. A message without a recorded result is ambiguous.
async fn send(shared: &SendShared, term: &WorkerTerm, message: OutboxMessage) {
    let (id, to, connection) = (message.id, message.outgoing.to.as_str(), message.connection);
    let mut ambiguity = SendAmbiguity { open: message.ambiguous, resent: false };
    let span = span(&message);
    let sending = async {
        if message.crashes >= CRASHES_MAX {
            return SendOutcome::Failed(
                "the process crashed too often while it sent the message".into(),
            );
        }
        sender::send(shared, term, &message, &mut ambiguity).await
    };
    let sending = tokio::time::timeout(SEND_DEADLINE, sending.instrument(span.clone()));
    let sent = AssertUnwindSafe(sending).catch_unwind().await;
    let (outcome, crashed) = match sent {
        Ok(Ok(outcome)) => (outcome, false),
        Ok(Err(_)) => (SendOutcome::Ambiguous(RETRY_INTERVAL, "the send timed out".into()), false),
        Err(_) if message.crashes + 1 >= CRASHES_MAX => {
            (SendOutcome::Failed("the send panicked".into()), true)
        }
        Err(_) => (SendOutcome::Ambiguous(RETRY_INTERVAL, "the send panicked".into()), true),
    };
    let outcome = match outcome {
        SendOutcome::Later(_, reason)
        | SendOutcome::Ambiguous(_, reason)
        | SendOutcome::Untried(_, reason)
            if message.age > max_age(&message.outgoing.to) =>
        {
            SendOutcome::Failed(format!("given up after {:?}: {reason}", message.age))
        }
        other => other,
    };
    match &outcome {
        SendOutcome::Sent => {
            info!(outbox = id, to, %connection, "message sent");
            shared.context.usage.record_reply(connection);
        }
        SendOutcome::Later(after, reason) | SendOutcome::Untried(after, reason) => {
            info!(outbox = id, to, %connection, ?after, reason, "message postponed");
        }
        SendOutcome::Ambiguous(after, reason) => {
            span.record("error.type", "ambiguous");
            warn!(outbox = id, to, %connection, ?after, reason, "message may have been sent");
        }
        SendOutcome::Failed(reason) => {
            span.record("error.type", "failed");
            warn!(outbox = id, to, %connection, reason, "failed to send message");
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
        warn!(outbox = id, error = %ErrorChain(&error), "failed to record send result");
        if !term.holds() {
            return;
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    }
}

/// Returns the trace span of a send, linked to the request that the message answers.
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
        telemetry::link_span(&span, traceparent);
    }
    span
}

/// Returns the age at which a message is given up on: half an hour for a response_url without a
/// fallback, otherwise a day.
fn max_age(to: &Destination) -> Duration {
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
