//! Reads one partition from its cursor and commits what it reads.
//!
//! Spawned by the lease manager per partition. Nothing is acknowledged in the stream: Postgres
//! holds the cursor. A message that is not an envelope becomes a dead letter. For a webhook of a
//! newer release the worker releases the partition. While Postgres is unavailable the reader waits.
//! The next batch is prepared when the outcome of the previous one is known.

use super::{
    batch::{BatchHalving, PrepareLimit},
    committer::Committer,
    connection_share::ConnectionShares,
    owned_partition::OwnedPartition,
    pending::{PendingMessages, ReadResult},
    redrive,
    stream_reset::{self, StreamCheck, StreamReset},
    stream_retention,
};
use crate::{context::Context, decider::Decider};
use async_nats::jetstream;
use shared::{
    runtime::telemetry::ErrorChain,
    store::CursorState,
    stream::{STREAM, StreamReader, subject_filter},
};
use std::{sync::Arc, time::Duration};
use tokio::time::Instant;
use tracing::warn;

/// Interval at which the size of the stream is checked, and an idle partition records its progress.
const IDLE_INTERVAL: Duration = Duration::from_secs(60);

/// Reason for which a reader ended.
enum EndReason {
    /// The partition is released or lost.
    Stopped,
    /// The stream was reset.
    Reset(StreamReset),
}

/// Reads a partition until it is released or lost.
pub async fn run(
    context: Arc<Context>,
    js: jetstream::Context,
    owned: Arc<OwnedPartition>,
    state: CursorState,
    decider: Decider,
) {
    let name = format!("p{}-e{}-{}", owned.partition(), owned.token.epoch, context.worker_name);
    let subjects = subject_filter(owned.partition());
    let reader = StreamReader::new(js.clone(), STREAM, subjects, name, state.cursor + 1);
    let committer = Committer {
        context: &context,
        owned: &owned,
        decider: &decider,
        cursor: state.cursor,
        halving: BatchHalving::new(owned.alone),
        prepare_limit: PrepareLimit::new(),
        shares: ConnectionShares::new(context.connection_bytes_max),
        over_share: Vec::new(),
    };
    let reason = tokio::select! {
        _ = owned.lost.cancelled() => EndReason::Stopped,
        reason = read(committer, reader, &js, state.clone()) => reason,
        () = redrive::run(&context, &owned, &decider) => EndReason::Stopped,
    };
    owned.progress.record(0, None);
    if let EndReason::Reset(reset) = reason {
        stream_reset::bump_generation(&context, &js, &owned, &state, reset).await;
    }
}

async fn read(
    mut committer: Committer<'_>,
    mut reader: StreamReader,
    js: &jetstream::Context,
    mut state: CursorState,
) -> EndReason {
    let (context, owned) = (committer.context, committer.owned);
    let mut pending = PendingMessages::new(context.intake_budget.clone());
    let mut recorded = Instant::now();
    loop {
        let result = tokio::select! {
            biased;
            _ = owned.stop.cancelled() => return EndReason::Stopped,
            result = pending.read(&mut reader) => result,
        };
        match result {
            ReadResult::Messages => committer.record_progress(&pending),
            ReadResult::Opened(opened) => {
                let cursor = committer.cursor;
                match stream_reset::check(js, owned, &opened, &state, cursor).await {
                    StreamCheck::Unchanged => {}
                    StreamCheck::Reset(reset) => return EndReason::Reset(reset),
                    StreamCheck::Stopped => return EndReason::Stopped,
                }
                record_stream(&committer, &mut state, opened.created_ns).await;
                continue;
            }
            ReadResult::CaughtUp(through) => {
                committer.record_progress(&pending);
                if recorded.elapsed() > IDLE_INTERVAL && pending.is_empty() {
                    recorded = Instant::now();
                    let advanced = context.store.advance_read_through(&owned.token, through);
                    if let Err(error) = advanced.await {
                        let (partition, error) = (owned.partition(), ErrorChain(&error));
                        warn!(%partition, %error, "failed to record read-through time");
                    }
                    stream_retention::make_room(context, js, owned, &state).await;
                }
            }
        }
        while !pending.is_empty() {
            match committer.commit_next(&mut pending).await {
                Some(last) => state.last = Some(last),
                None => return EndReason::Stopped,
            }
            for over in std::mem::take(&mut committer.over_share) {
                stream_retention::purge_over_share(context, js, owned, over).await;
            }
            if owned.stop.is_cancelled() {
                return EndReason::Stopped;
            }
        }
        if recorded.elapsed() > IDLE_INTERVAL {
            recorded = Instant::now();
            stream_retention::make_room(context, js, owned, &state).await;
        }
    }
}

/// Records the creation time of a stream before the first commit from it, so that a later reset is
/// detected.
async fn record_stream(committer: &Committer<'_>, state: &mut CursorState, created_ns: i64) {
    if state.stream_created_ns.is_none() {
        let (store, token) = (&committer.context.store, &committer.owned.token);
        committer.retry("record stream", || store.record_stream(token, created_ns)).await;
        state.stream_created_ns = Some(created_ns);
    }
}
