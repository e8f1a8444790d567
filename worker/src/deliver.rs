//! The outbox to Slack: what was decided is said, in the order of each lane, and never forgotten.
//!
//! In: rows of the partition's outbox. Out: calls to Slack (see `say`), and how each ended. A lane's next row waits for
//! the one before it; lanes don't wait for each other. A row is marked before the call; one that was marked by an owner
//! that did not come back waits out that owner's call, and is in doubt. What is under way when we are to stop, or lose
//! the partition, is finished all the same: it can't be called back, and how it ended is worth knowing.

use crate::{Workshop, part::Part, say, slack};
use shared::{
    store::{Doubt, Queued, SendResult, Settled, StoreError, Taken},
    telemetry::{self, Chain},
    types::Destination,
};
use std::{sync::Arc, time::Duration};
use tokio::{task::JoinSet, time::Instant};
use tracing::{Instrument, Span, error, field, info, warn};

/// Rows under way at once.
const AT_ONCE: usize = 32;
/// Without a word of a new row, the outbox is looked at this often: for what an owner before left.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// For what Slack limits it is looked at when that may be said, and not more often than this: others wait for it, too.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// One row, whatever it waits for.
const SEND_DEADLINE: Duration = Duration::from_secs(8);
/// So long after it was taken the last try begins to write down how it ended.
const WRITTEN_BY: Duration = Duration::from_secs(9);
/// A row is left alone for this long after it was taken: its sender may still be at it.
const TAKEN_FOR: Duration = Duration::from_secs(10);
const _: () = assert!(slack::SEND_TIMEOUT.as_secs() < SEND_DEADLINE.as_secs());
const _: () = assert!(SEND_DEADLINE.as_secs() < WRITTEN_BY.as_secs());
const _: () = assert!(WRITTEN_BY.as_secs() < TAKEN_FOR.as_secs());
/// After a Postgres failure, and after a call that took too long.
const PAUSE: Duration = Duration::from_millis(250);

/// Delivers for a partition until it is to stop or is lost.
pub async fn run(workshop: Arc<Workshop>, part: Arc<Part>) {
    // Tasks, not futures polled from here: while this loop waits for a connection to Postgres, one of them may be given one
    // and would never use it.
    let mut sending = JoinSet::new();
    // When a row that was put off is due; there may be one of an owner before us at any time.
    let mut due = vec![Instant::now()];
    // When the next of what Slack limits may be said. One moment, not one more with every look.
    let mut limited: Option<Instant> = None;
    loop {
        let over = part.stop.is_cancelled() || part.lost.is_cancelled();
        if over && sending.is_empty() {
            return;
        }
        let now = Instant::now();
        if !over && sending.len() < AT_ONCE && due.iter().chain(&limited).any(|at| *at <= now) {
            due.retain(|at| *at > now);
            match take(&workshop, &part, AT_ONCE - sending.len()).await {
                Ok(taken) => {
                    limited = taken.limited.map(|free_in| now + free_in.max(LOOK_AGAIN));
                    for row in taken.rows {
                        let (workshop, part) = (Arc::clone(&workshop), Arc::clone(&part));
                        sending.spawn(async move { send(&workshop, &part, row).await });
                    }
                }
                Err(error) => {
                    warn!(error = %Chain(&error), "the outbox could not be worked");
                    limited = None;
                    due.push(now + PAUSE);
                }
            }
        }
        let next = due
            .iter()
            .chain(&limited)
            .min()
            .map_or(now + LOOK_EVERY, |at| (*at).min(now + LOOK_EVERY));
        tokio::select! {
            // The next row of its lane may be due, or itself after a while.
            Some(sent) = sending.join_next() => match sent {
                Ok(after) => due.push(Instant::now() + after),
                Err(panicked) => error!(%panicked, "how a row was sent is not known; it is in doubt"),
            },
            _ = part.stop.cancelled(), if !over => {}
            _ = part.lost.cancelled(), if !over => {}
            _ = part.outbox.notified(), if !over && sending.len() < AT_ONCE => due.push(Instant::now()),
            _ = tokio::time::sleep_until(next), if !over && sending.len() < AT_ONCE => due.push(next),
        }
    }
}

async fn take(workshop: &Workshop, part: &Part, room: usize) -> Result<Taken, StoreError> {
    workshop.store.take_outgoing(&part.owner, room as i64, TAKEN_FOR).await
}

/// Sends a row and writes down how that ended; gives when to look again. What can't be written down is found again as in
/// doubt.
async fn send(workshop: &Workshop, part: &Part, row: Queued) -> Duration {
    let (outbox, to, connection) = (row.id, row.outgoing.to.as_str(), row.connection);
    let taken = Instant::now();
    let mut doubt = Doubt { open: row.in_doubt, resent: false };
    let span = span(&row);
    let saying = say::say(workshop, part, &row, &mut doubt).instrument(span.clone());
    let said = tokio::time::timeout(SEND_DEADLINE, saying).await;
    let late = |_| SendResult::Doubtful(PAUSE, "it took too long".into());
    let result = match said.unwrap_or_else(late) {
        SendResult::Later(_, why) | SendResult::Doubtful(_, why)
            if row.age > given_up_after(&row.outgoing.to) =>
        {
            SendResult::Failed(format!("given up after {:?}: {why}", row.age))
        }
        other => other,
    };
    let after = match &result {
        SendResult::Sent => {
            info!(outbox, to, %connection, "said");
            Duration::ZERO
        }
        SendResult::Later(after, why) | SendResult::Untried(after, why) => {
            info!(outbox, to, %connection, ?after, why, "to be said later");
            *after
        }
        SendResult::Doubtful(after, why) => {
            span.record("error.type", "doubtful");
            warn!(outbox, to, %connection, ?after, why, "it may have been said");
            *after
        }
        SendResult::Failed(why) => {
            span.record("error.type", "failed");
            warn!(outbox, to, %connection, why, "can't be said");
            Duration::ZERO
        }
    };
    let (epoch, attempts) = (part.owner.epoch, row.attempts);
    let settled = Settled { id: row.id, epoch, attempts, result, doubt };
    // A Postgres that restarts is waited for; what is not written by then is in doubt.
    while let Err(error) = workshop.settling.settle(settled.clone()).await {
        warn!(outbox, error = %Chain(&error), "how it ended could not be written down");
        if taken.elapsed() > WRITTEN_BY || !part.is_ours() {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    after
}

/// A call to Slack: linked to the request that it answers, as the processing before it is.
fn span(row: &Queued) -> Span {
    let span = tracing::info_span!(
        target: "tidegate::trace",
        "say",
        otel.name = format!("say {}", row.outgoing.to.as_str()),
        otel.kind = "client",
        messaging.message.id = %row.dedupe,
        error.type = field::Empty,
    );
    if let Some(traceparent) = &row.traceparent {
        telemetry::link(&span, traceparent);
    }
    span
}

/// A `response_url` that nobody can be told without is good for half an hour; anything else is tried for a day.
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
