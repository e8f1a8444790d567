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
    let due = workshop.store.take_outgoing(&part.owner, BATCH, slack::SEND_TIMEOUT * 2).await?;
    let count = due.len();
    let mut sending: FuturesUnordered<_> =
        due.into_iter().map(|row| send(workshop, part, row)).collect();
    while let Some(settled) = sending.next().await {
        settled?;
    }
    Ok(count)
}

async fn send(workshop: &Workshop, part: &Part, row: Queued) -> Result<(), StoreError> {
    if row.in_doubt {
        warn!(
            outbox = row.id,
            to = row.outgoing.to.as_str(),
            "it may have been said before; saying it again"
        );
    }
    let result = if part.is_ours() { say(workshop, &row).await? } else { return Ok(()) };
    let (outbox, to, connection) = (row.id, row.outgoing.to.as_str(), row.connection);
    match &result {
        SendResult::Sent => info!(outbox, to, %connection, "said"),
        SendResult::Later(after, why) => {
            info!(outbox, to, %connection, ?after, why, "to be said later")
        }
        SendResult::Failed(why) => warn!(outbox, to, %connection, why, "can't be said"),
    }
    workshop.store.settle_outgoing(&part.owner, row.id, &result).await
}

async fn say(workshop: &Workshop, row: &Queued) -> Result<SendResult, StoreError> {
    let (slack, message, tries) = (&workshop.slack, &row.outgoing.message, row.attempts);
    let token = async || {
        let connection = workshop.store.hydrate_connection(row.connection).await?;
        Ok::<_, StoreError>(connection.and_then(|connection| connection.bot_token))
    };
    const NO_TOKEN: &str = "the connection has no bot token";
    Ok(match &row.outgoing.to {
        Destination::ResponseUrl { url } => slack.respond(url, message, tries).await,
        Destination::PostMessage { channel, thread_ts } => match token().await? {
            Some(token) => {
                slack.post_message(&token, channel, thread_ts.as_deref(), message, tries).await
            }
            None => SendResult::Failed(NO_TOKEN.into()),
        },
        Destination::UpdateView { view_id } => match token().await? {
            Some(token) => slack.update_view(&token, view_id, message, tries).await,
            None => SendResult::Failed(NO_TOKEN.into()),
        },
    })
}
