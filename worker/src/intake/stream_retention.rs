//! Purges committed history before a full stream rejects webhooks.
//!
//! The owner of a partition purges the partition's subjects up to its cursor. The last committed
//! message stays, since it identifies the stream. The last 24 hours stay, too, for a restored
//! Postgres, unless the stream is nearly full. If a connection exceeds its share of the stream, the
//! older half of its messages is purged at any age.

use super::{connection_share::OverShare, owned_partition::OwnedPartition};
use crate::context::Context;
use async_nats::jetstream;
use shared::{
    runtime::telemetry::ErrorChain,
    store::CursorState,
    stream::{self, BoxError, STREAM, subject_filter},
};
use std::time::Duration;
use tracing::{info, warn};

/// Used share of the stream, in percent, above which history is purged.
const PURGE_PERCENT: u64 = 70;
/// Used share of the stream, in percent, above which recent history is purged, too.
const NEARLY_FULL_PERCENT: u64 = 85;
/// Age up to which history is recent.
const RECENT: Duration = Duration::from_secs(24 * 3600);

/// Purges committed history of a partition if the stream is above its thresholds.
pub async fn make_room(
    context: &Context,
    js: &jetstream::Context,
    owned: &OwnedPartition,
    state: &CursorState,
) {
    if let Err(error) = try_make_room(context, js, owned, state).await {
        let (partition, error) = (owned.partition(), ErrorChain(&*error));
        warn!(%partition, %error, "failed to purge committed history");
    }
}

async fn try_make_room(
    context: &Context,
    js: &jetstream::Context,
    owned: &OwnedPartition,
    state: &CursorState,
) -> Result<(), BoxError> {
    let stream = js.get_stream(STREAM).await?;
    let info = stream.cached_info();
    let (bytes, max) = (info.state.bytes, u64::try_from(info.config.max_bytes).unwrap_or(u64::MAX));
    context.metrics.record_stream_usage(bytes, max);
    // In a recreated stream, sequences belong to other webhooks. The reader detects the reset.
    let created = i64::try_from(info.created.unix_timestamp_nanos()).ok();
    if state.stream_created_ns.is_some_and(|ns| created != Some(ns)) {
        return Err("the stream was recreated".into());
    }
    let Some(last) = state.last.as_ref().filter(|_| bytes > max / 100 * PURGE_PERCENT) else {
        return Ok(());
    };
    let (partition, subjects) = (owned.partition(), subject_filter(owned.partition()));
    let mut up_to = last.sequence;
    if bytes <= max / 100 * NEARLY_FULL_PERCENT {
        let since = info.state.last_timestamp - RECENT;
        let reader =
            format!("p{partition}-e{}-room-{}", owned.token.epoch, info.state.last_sequence);
        let recent = stream::first_since(&stream, subjects.clone(), since, reader).await?;
        up_to = recent.map_or(up_to, |recent| recent.min(up_to));
    }
    let purged = purge(context, owned, &stream, subjects, up_to).await?;
    info!(%partition, bytes, max, up_to, purged, "committed history purged");
    Ok(())
}

/// Purges committed messages of a connection that exceeds its share.
pub async fn purge_over_share(
    context: &Context,
    js: &jetstream::Context,
    owned: &OwnedPartition,
    over: OverShare,
) {
    let (partition, OverShare { connection, up_to }) = (owned.partition(), over);
    let purge = async {
        let stream = js.get_stream(STREAM).await?;
        let subject = stream::subject(partition, connection);
        purge(context, owned, &stream, subject, up_to + 1).await
    };
    match purge.await {
        Ok(purged) => {
            context.metrics.record_share_purge();
            warn!(%partition, %connection, up_to, purged, "history over share purged");
        }
        Err(error) => {
            let error = ErrorChain(&*error);
            warn!(%partition, %connection, %error, "failed to purge history over share");
        }
    }
}

/// Purges the messages of subjects below a sequence. Returns their number.
async fn purge(
    context: &Context,
    owned: &OwnedPartition,
    stream: &jetstream::stream::Stream,
    subjects: String,
    below: u64,
) -> Result<u64, BoxError> {
    // The removal is recorded first: purged webhooks must never appear lost.
    let removal = context.store.record_removal(&owned.token, &subjects, below).await?;
    let removal =
        removal.filter(|_| owned.holds_lease()).ok_or("the partition is no longer held")?;
    let purged = stream.purge().filter(subjects).sequence(below).await?.purged;
    context.store.record_removed(removal, purged).await?;
    Ok(purged)
}
