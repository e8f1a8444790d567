//! The outbox to Slack: what was decided is said, in the order of each lane, and never forgotten.
//!
//! In: rows of the partition's outbox. Out: calls to Slack, and how each ended. A lane's next row waits for the one
//! before it; lanes don't wait for each other. A row is marked before the call; one that was marked by an owner that
//! did not come back waits out that owner's call, is counted as in doubt, and is said again.

use crate::{Workshop, part::Part, slack};
use futures_util::{StreamExt, stream::FuturesUnordered};
use shared::{
    store::{Queued, SendResult, StoreError},
    telemetry::Chain,
    types::Destination,
};
use std::{sync::Arc, time::Duration};
use tracing::{info, warn};

/// Rows taken at once.
const BATCH: i64 = 32;
/// Without a word of a new row, the outbox is looked at this often: for retries, and for what an owner before left.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// One row, whatever it waits for.
const SEND_DEADLINE: Duration = Duration::from_secs(8);
/// A row is left alone for this long after it was taken: its sender may still be at it.
const TAKEN_FOR: Duration = Duration::from_secs(10);
const _: () = assert!(slack::SEND_TIMEOUT.as_secs() < SEND_DEADLINE.as_secs());
const _: () = assert!(SEND_DEADLINE.as_secs() < TAKEN_FOR.as_secs());
/// After a Postgres failure.
const PAUSE: Duration = Duration::from_millis(250);

/// Delivers for a partition until it is to stop or is lost.
pub async fn run(workshop: Arc<Workshop>, part: Arc<Part>) {
    loop {
        if part.stop.is_cancelled() || part.lost.is_cancelled() {
            return;
        }
        let wait = match deliver(&workshop, &part).await {
            Ok(0) => LOOK_EVERY,
            Ok(_) => Duration::ZERO, // the next rows of these lanes may be due
            Err(error) => {
                warn!(error = %Chain(&error), "the outbox could not be worked");
                PAUSE
            }
        };
        tokio::select! {
            _ = part.stop.cancelled() => return,
            _ = part.lost.cancelled() => return,
            _ = part.outbox.notified() => {}
            _ = tokio::time::sleep(wait) => {}
        }
    }
}

/// Sends the due heads of the lanes; gives how many there were.
async fn deliver(workshop: &Workshop, part: &Part) -> Result<usize, StoreError> {
    let due = workshop.store.take_outgoing(&part.owner, BATCH, TAKEN_FOR).await?;
    let count = due.len();
    let mut sending: FuturesUnordered<_> =
        due.into_iter().map(|row| send(workshop, part, row)).collect();
    while sending.next().await.is_some() {}
    Ok(count)
}

/// Sends a row and writes down how that ended. What can't be written down is found again as in doubt.
async fn send(workshop: &Workshop, part: &Part, row: Queued) {
    let (outbox, to, connection) = (row.id, row.outgoing.to.as_str(), row.connection);
    if row.in_doubt {
        warn!(outbox, to, "it may have been said before; saying it again");
    }
    let said = tokio::time::timeout(SEND_DEADLINE, say(workshop, part, &row)).await;
    let result = match said.unwrap_or_else(|_| SendResult::Later(PAUSE, "it took too long".into()))
    {
        SendResult::Later(_, why) if row.age > given_up_after(&row.outgoing.to) => {
            SendResult::Failed(format!("given up after {:?}: {why}", row.age))
        }
        other => other,
    };
    match &result {
        SendResult::Sent => info!(outbox, to, %connection, "said"),
        SendResult::Later(after, why) => {
            info!(outbox, to, %connection, ?after, why, "to be said later")
        }
        SendResult::Failed(why) => warn!(outbox, to, %connection, why, "can't be said"),
    }
    if let Err(error) = workshop.store.settle_outgoing(&part.owner, row.id, &result).await {
        warn!(outbox, error = %Chain(&error), "how it ended could not be written down");
    }
}

async fn say(workshop: &Workshop, part: &Part, row: &Queued) -> SendResult {
    const NO_TOKEN: &str = "the connection has no bot token";
    let (slack, message, tries) = (&workshop.slack, &row.outgoing.message, row.attempts);
    let token = match &row.outgoing.to {
        Destination::ResponseUrl { .. } => None,
        Destination::PostMessage { .. } | Destination::UpdateView { .. } => {
            match workshop.hydrator.connection(row.connection).await {
                Ok(connection) => {
                    match connection.and_then(|connection| connection.bot_token.clone()) {
                        Some(token) => Some(token),
                        None => return SendResult::Failed(NO_TOKEN.into()),
                    }
                }
                Err(error) => return SendResult::Later(PAUSE, Chain(&error).to_string()),
            }
        }
    };
    // Asked last: from here to Slack nothing waits for anything of ours.
    if !part.is_ours() {
        return SendResult::Later(Duration::ZERO, "the partition is not ours any more".into());
    }
    match (&row.outgoing.to, token) {
        (Destination::ResponseUrl { url }, _) => slack.respond(url, message, tries).await,
        (Destination::PostMessage { channel, thread_ts }, Some(token)) => {
            slack.post_message(&token, channel, thread_ts.as_deref(), message, tries).await
        }
        (Destination::UpdateView { view_id }, Some(token)) => {
            slack.update_view(&token, view_id, message, tries).await
        }
        (_, None) => SendResult::Failed(NO_TOKEN.into()),
    }
}

/// A `response_url` is good for half an hour; anything else is tried for a day.
fn given_up_after(to: &Destination) -> Duration {
    match to {
        Destination::ResponseUrl { .. } => Duration::from_secs(30 * 60),
        Destination::PostMessage { .. } | Destination::UpdateView { .. } => {
            Duration::from_secs(24 * 3600)
        }
    }
}
