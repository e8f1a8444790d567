//! Makes room: in Postgres, and in the stream when it gets full.
//!
//! In: what is past its time. Out: nothing of it. The stream is a log and keeps history for replays; but above 70 % of its
//! bytes what lies below every cursor and every parked webhook goes: finished history yields to live traffic, which a
//! full stream would refuse. Done by one worker at a time, the one that sweeps.

use crate::{Workshop, commit::listed};
use async_nats::jetstream;
use shared::{
    codec::envelope::MSG_ID,
    store::{Forgotten, Kept, Standing, Store},
    stream::STREAM,
    telemetry::Chain,
};
use std::{sync::Arc, time::Duration};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Between two looks.
const EVERY: Duration = Duration::from_secs(10);
/// Webhooks copied in one look, at most.
const COPIES: i64 = 500;
/// The stream may be full to this share, in percent, before history goes.
const FULL_PERCENT: u64 = 70;

/// Tidies for as long as the partition that is the lock is ours.
pub async fn run(workshop: Arc<Workshop>, js: jetstream::Context, until: CancellationToken) {
    let (store, mut copied_to) = (&workshop.store, 0);
    let tidying = async {
        loop {
            forget(store).await;
            if let Err(error) = keep_bytes(store, &js, &mut copied_to).await {
                warn!(error = %error, "what is parked for long could not be copied");
            }
            if let Err(error) = purge(&workshop, &js).await {
                warn!(error = %error, "the stream could not be looked at for room");
            }
            match store.standing().await {
                Ok(standing) => workshop.metrics.standing(standing),
                Err(error) => warn!(error = %Chain(&error), "what waits could not be counted"),
            }
            tokio::time::sleep(EVERY).await;
        }
    };
    tokio::select! { _ = until.cancelled() => {}, () = tidying => {} }
    // Somebody else tells now.
    workshop.metrics.standing(Standing::default());
    workshop.metrics.stream_used(0, 1);
}

async fn forget(store: &Store) {
    match store.forget().await {
        Ok(nothing) if nothing == Forgotten::default() => {}
        Ok(Forgotten { seen, lanes, outbox, dead, workers, replays }) => {
            info!(seen, lanes, outbox, dead, workers, replays, "deleted what is past its time");
        }
        Err(error) => warn!(error = %Chain(&error), "what is past its time could not be deleted"),
    }
}

/// Copies what is parked for over a day out of the stream: it may outlive its place there. The next look goes on behind
/// this one's, and then begins anew: what can't be copied keeps nothing else from it.
async fn keep_bytes(
    store: &Store,
    js: &jetstream::Context,
    copied_to: &mut u64,
) -> Result<(), async_nats::Error> {
    let parked = store.parked_without_bytes(*copied_to, COPIES).await?;
    let whole = parked.len() as i64 == COPIES;
    *copied_to = parked.last().filter(|_| whole).map_or(0, |last| last.sequence);
    if parked.is_empty() {
        return Ok(());
    }
    let stream = js.get_stream(STREAM).await?;
    for row in parked {
        // What is not there any more is found out when its turn comes.
        let Ok(message) = stream.get_raw_message(row.sequence).await else { continue };
        let headers = listed(Some(&message.headers));
        let itself =
            |(name, value): &(String, String)| name == MSG_ID && value == row.dedupe.as_str();
        if headers.iter().any(itself) {
            store.keep_bytes(&row, &Kept { headers, body: message.payload.to_vec() }).await?;
        }
    }
    Ok(())
}

async fn purge(workshop: &Workshop, js: &jetstream::Context) -> Result<(), async_nats::Error> {
    let stream = js.get_stream(STREAM).await?;
    let info = stream.cached_info();
    let (bytes, room) =
        (info.state.bytes, u64::try_from(info.config.max_bytes).unwrap_or(u64::MAX));
    workshop.metrics.stream_used(bytes, room);
    if bytes <= room / 100 * FULL_PERCENT {
        return Ok(());
    }
    let created_ns = info.created.unix_timestamp_nanos() as i64;
    let Some(needed_from) = workshop.store.needed_from(created_ns).await? else {
        warn!(
            bytes,
            room, "the stream is filling up, and not every partition has read this one yet"
        );
        return Ok(());
    };
    if needed_from <= info.state.first_sequence {
        warn!(bytes, room, needed_from, "the stream is filling up, and nothing in it is finished");
        return Ok(());
    }
    let purged = stream.purge().sequence(needed_from).await?.purged;
    info!(bytes, room, needed_from, purged, "finished history made room for live traffic");
    Ok(())
}
