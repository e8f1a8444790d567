//! Detects that the stream is not the one that was read: created anew, cut short and filled again, or restored.
//!
//! A stream is recognized by its creation time and by the last own message that was committed: its dedup key must stand at
//! its sequence. No message there proves nothing (it may have been purged). Reading on in another stream would skip whatever
//! gets the old sequences, without a trace; so the generation is raised, and the partition is read again from the server
//! time of its cursor. Processed keys keep effects single.

use super::owned_partition::OwnedPartition;
use crate::context::Context;
use async_nats::jetstream::{self, stream::RawMessageErrorKind};
use shared::{
    codec::envelope::MSG_ID,
    follow::{self, Broken, StreamState},
    store::{CursorState, NewGeneration},
    stream::{STREAM, subjects_of},
    telemetry::Chain,
};
use std::time::Duration;
use tracing::{error, warn};

/// Wait before another try.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Another stream than the one that was read.
#[derive(Debug, Clone, Copy)]
pub struct StreamReset {
    why: &'static str,
    stream: StreamState,
}

/// The dedup key at the sequence of the last own message, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Key(String),
    Nothing,
}

/// Compares the stream that a reader opened with the one that was read; waits for an answer of NATS.
pub async fn check(
    js: &jetstream::Context,
    stream: &StreamState,
    state: &CursorState,
    cursor: u64,
) -> Option<StreamReset> {
    let found = loop {
        match find(js, state).await {
            Ok(found) => break found,
            Err(error) => {
                warn!(%error, "failed to read the last committed message from the stream")
            }
        }
        tokio::time::sleep(RETRY_INTERVAL).await;
    };
    let why = judge(stream, state, cursor, &found)?;
    Some(StreamReset { why, stream: *stream })
}

async fn find(js: &jetstream::Context, state: &CursorState) -> Result<Found, Broken> {
    let Some(last) = &state.last else { return Ok(Found::Nothing) };
    let stream = js.get_stream_no_info(STREAM).await?;
    match stream.get_raw_message(last.sequence).await {
        Ok(message) => {
            let key = message.headers.get(MSG_ID).map(|key| key.as_str().to_owned());
            Ok(Found::Key(key.unwrap_or_default()))
        }
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(Found::Nothing),
        Err(error) => Err(error.into()),
    }
}

/// Returns why the stream is another one, if it is.
fn judge(
    stream: &StreamState,
    state: &CursorState,
    cursor: u64,
    found: &Found,
) -> Option<&'static str> {
    // Before a stream was recorded nothing was read, and it may begin and end where it likes.
    let created_ns = state.stream_created_ns?;
    if created_ns != stream.created_ns {
        Some("it was created anew")
    } else if stream.last_sequence < cursor {
        Some("it ends below the cursor")
    } else {
        match (found, &state.last) {
            (Found::Key(key), Some(last)) if *key != last.key => {
                Some("another message is at the sequence of the last committed one")
            }
            _ => None,
        }
    }
}

/// Raises the partition's generation and gives it back; whoever claims it next reads on in the new stream.
pub async fn bump_generation(
    context: &Context,
    js: &jetstream::Context,
    part: &OwnedPartition,
    state: &CursorState,
    reset: StreamReset,
) {
    let partition = part.partition();
    let StreamState { first_sequence, last_sequence, .. } = reset.stream;
    error!(
        %partition, cursor = state.cursor, first_sequence, last_sequence, why = reset.why,
        "stream reset detected: raising the generation, reading again from the time of the cursor"
    );
    context.metrics.stream_reset();
    for attempt in 1.. {
        match try_bump(context, js, part, state, reset.stream, attempt).await {
            Ok(true) => break,
            Ok(false) => {
                warn!(%partition, "partition is another worker's already");
                break;
            }
            Err(error) => {
                warn!(%partition, error = %Chain(&*error), "failed to raise the generation");
            }
        }
        tokio::select! {
            _ = part.lost.cancelled() => return,
            _ = part.stop.cancelled() => return, // the next owner detects the same
            _ = tokio::time::sleep(RETRY_INTERVAL) => {}
        }
    }
    part.lost.cancel();
}

async fn try_bump(
    context: &Context,
    js: &jetstream::Context,
    part: &OwnedPartition,
    state: &CursorState,
    stream: StreamState,
    attempt: u32,
) -> Result<bool, Broken> {
    let since = state.last.as_ref().map_or(state.read_through, |last| last.stored_at);
    let filter = subjects_of(part.partition());
    // A name of its own for every try: the reader of the one before has given out its first message already.
    let reader = format!("p{}-e{}-since-{attempt}", part.partition(), part.token.epoch);
    let first = follow::first_since(&js.get_stream(STREAM).await?, filter, since, reader).await?;
    let cursor = first.map_or(stream.last_sequence, |first| first.saturating_sub(1));
    let new = NewGeneration { created_ns: stream.created_ns, cursor };
    Ok(context.store.bump_generation(&part.token, new).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::store::LastMessage;
    use time::OffsetDateTime;

    fn state(created_ns: Option<i64>, last: Option<(u64, &str)>) -> CursorState {
        let at = OffsetDateTime::UNIX_EPOCH;
        let last = last.map(|(sequence, key)| {
            let key = key.to_owned();
            LastMessage { sequence, key, stored_at: at }
        });
        let (epoch, generation, cursor) = (1, 1, 10);
        CursorState {
            epoch,
            generation,
            cursor,
            stream_created_ns: created_ns,
            last,
            read_through: at,
        }
    }

    #[test]
    fn reset_is_told_from_purge() {
        let stream = |created_ns, first_sequence, last_sequence| StreamState {
            created_ns,
            first_sequence,
            last_sequence,
        };
        let key = |key: &str| Found::Key(key.to_owned());
        let known = || state(Some(1), Some((10, "a")));
        for (stream, state, found, reset) in [
            (stream(1, 1, 10), known(), key("a"), false),
            (stream(1, 11, 10), known(), Found::Nothing, false), // all of it was purged
            (stream(1, 5_001, 5_000), known(), Found::Nothing, false), // purged history, idle partition (W9)
            (stream(1, 1, 20), known(), key("b"), true), // cut short and filled again (W4)
            (stream(1, 1, 20), known(), key(""), true),
            (stream(2, 1, 10), known(), key("a"), true),
            (stream(1, 1, 9), known(), Found::Nothing, true),
            (stream(9, 900, 999), state(None, None), Found::Nothing, false), // never read before
        ] {
            let judged = judge(&stream, &state, 10, &found);
            assert_eq!(judged.is_some(), reset, "{stream:?} {found:?}: {judged:?}");
        }
    }
}
