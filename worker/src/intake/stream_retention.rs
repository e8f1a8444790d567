//! Purges committed history before a full stream rejects webhooks.
//!
//! The owner of a partition purges the partition's subjects up to its cursor. The last committed
//! message stays, since it identifies the stream. The last 24 hours stay, too, for a restored
//! Postgres, unless the stream is nearly full.

use super::owned_partition::OwnedPartition;
use crate::context::Context;
use async_nats::jetstream;
use shared::{
    follow::{self, Broken},
    store::CursorState,
    stream::{STREAM, subjects_of},
    telemetry::Chain,
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
        let (partition, error) = (owned.partition(), Chain(&*error));
        warn!(%partition, %error, "failed to purge committed history");
    }
}

async fn try_make_room(
    context: &Context,
    js: &jetstream::Context,
    owned: &OwnedPartition,
    state: &CursorState,
) -> Result<(), Broken> {
    let stream = js.get_stream(STREAM).await?;
    let info = stream.cached_info();
    let (bytes, max) = (info.state.bytes, u64::try_from(info.config.max_bytes).unwrap_or(u64::MAX));
    context.metrics.record_stream_usage(bytes, max);
    let Some(last) = state.last.as_ref().filter(|_| bytes > max / 100 * PURGE_PERCENT) else {
        return Ok(());
    };
    let (partition, subjects) = (owned.partition(), subjects_of(owned.partition()));
    let mut up_to = last.sequence;
    if bytes <= max / 100 * NEARLY_FULL_PERCENT {
        let since = info.state.last_timestamp - RECENT;
        let reader =
            format!("p{partition}-e{}-room-{}", owned.token.epoch, info.state.last_sequence);
        let recent = follow::first_since(&stream, subjects.clone(), since, reader).await?;
        up_to = recent.map_or(up_to, |recent| recent.min(up_to));
    }
    // The removal is recorded first: purged webhooks must never look lost.
    let removal = context.store.record_removal(&owned.token, &subjects, up_to).await?;
    let purged = stream.purge().filter(subjects).sequence(up_to).await?.purged;
    context.store.record_removed(removal, purged).await?;
    info!(%partition, bytes, max, up_to, purged, "committed history purged");
    Ok(())
}
