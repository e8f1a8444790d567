//! Detects that the stream is not the one that was read: created anew, cut short and filled again, or restored.
//!
//! A stream is recognized by its creation time and by the last own message that was committed: its dedup key and server time
//! must stand at its sequence. No message there proves nothing (it may have been purged). Before the first commit of a
//! generation there is no such message: then nothing since the time of the cursor may lie below the cursor. Reading on in
//! another stream would skip whatever gets the old sequences, without a trace; so the generation is raised, and the partition
//! is read again from the server time of its cursor. Processed keys keep effects single.

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
use time::OffsetDateTime;
use tracing::{error, warn};

/// Wait before another try.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Another stream than the one that was read.
#[derive(Debug, Clone, Copy)]
pub struct StreamReset {
    why: &'static str,
    stream: StreamState,
}

/// What the stream holds where the cursor stands.
#[derive(Debug, Clone, PartialEq, Eq)]
enum CursorEvidence {
    /// The dedup key and server time of the message at the sequence of the last committed one.
    Message(String, OffsetDateTime),
    /// No last committed message is known; the first own message since the time of the cursor has this sequence.
    FirstSince(u64),
    /// No such message.
    Nothing,
}

/// Compares the stream that a reader opened with the one that was read; waits for an answer of NATS.
pub async fn check(
    js: &jetstream::Context,
    owned: &OwnedPartition,
    stream: &StreamState,
    state: &CursorState,
    cursor: u64,
) -> Option<StreamReset> {
    let mut attempt = 0;
    let found = loop {
        attempt += 1;
        match find(js, owned, state, attempt).await {
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

async fn find(
    js: &jetstream::Context,
    owned: &OwnedPartition,
    state: &CursorState,
    attempt: u32,
) -> Result<CursorEvidence, Broken> {
    let Some(last) = &state.last else {
        if state.cursor == 0 {
            return Ok(CursorEvidence::Nothing);
        }
        let first = first_since_cursor(js, owned, state, format!("first-{attempt}")).await?;
        return Ok(first.map_or(CursorEvidence::Nothing, CursorEvidence::FirstSince));
    };
    let stream = js.get_stream_no_info(STREAM).await?;
    match stream.get_raw_message(last.sequence).await {
        Ok(message) => {
            let key = message.headers.get(MSG_ID).map(|key| key.as_str().to_owned());
            Ok(CursorEvidence::Message(key.unwrap_or_default(), message.time))
        }
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => {
            Ok(CursorEvidence::Nothing)
        }
        Err(error) => Err(error.into()),
    }
}

/// Returns the first own sequence since the server time of the cursor. `reader` names the consumer: another one for every try,
/// since a reader gives out its first message once.
async fn first_since_cursor(
    js: &jetstream::Context,
    owned: &OwnedPartition,
    state: &CursorState,
    reader: String,
) -> Result<Option<u64>, Broken> {
    let since = state.last.as_ref().map_or(state.read_through, |last| last.stored_at);
    let reader = format!("p{}-e{}-{reader}", owned.partition(), owned.token.epoch);
    let stream = js.get_stream(STREAM).await?;
    follow::first_since(&stream, subjects_of(owned.partition()), since, reader).await
}

/// Returns why the stream is another one, if it is.
fn judge(
    stream: &StreamState,
    state: &CursorState,
    cursor: u64,
    found: &CursorEvidence,
) -> Option<&'static str> {
    // Before a stream was recorded nothing was read, and it may begin and end where it likes.
    let created_ns = state.stream_created_ns?;
    if created_ns != stream.created_ns {
        Some("it was created anew")
    } else if stream.last_sequence < cursor {
        Some("it ends below the cursor")
    } else {
        match (found, &state.last) {
            (CursorEvidence::Message(key, stored_at), Some(last))
                if *key != last.key || micros(*stored_at) != micros(last.stored_at) =>
            {
                Some("another message is at the sequence of the last committed one")
            }
            (CursorEvidence::FirstSince(first), None) if *first <= cursor => {
                Some("messages since the time of the cursor lie below it")
            }
            _ => None,
        }
    }
}

/// Postgres keeps times in microseconds.
fn micros(at: OffsetDateTime) -> i128 {
    at.unix_timestamp_nanos() / 1_000
}

/// Raises the partition's generation and gives it back; whoever claims it next reads on in the new stream.
pub async fn bump_generation(
    context: &Context,
    js: &jetstream::Context,
    owned: &OwnedPartition,
    state: &CursorState,
    reset: StreamReset,
) {
    let partition = owned.partition();
    let StreamState { first_sequence, last_sequence, .. } = reset.stream;
    error!(
        %partition, cursor = state.cursor, first_sequence, last_sequence, why = reset.why,
        "stream reset detected: raising the generation, reading again from the time of the cursor"
    );
    context.metrics.record_stream_reset();
    for attempt in 1.. {
        match try_bump(context, js, owned, state, reset.stream, attempt).await {
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
            _ = owned.lost.cancelled() => return,
            _ = owned.stop.cancelled() => return, // the next owner detects the same
            _ = tokio::time::sleep(RETRY_INTERVAL) => {}
        }
    }
    owned.lost.cancel();
}

async fn try_bump(
    context: &Context,
    js: &jetstream::Context,
    owned: &OwnedPartition,
    state: &CursorState,
    stream: StreamState,
    attempt: u32,
) -> Result<bool, Broken> {
    let first = first_since_cursor(js, owned, state, format!("since-{attempt}")).await?;
    let cursor = first.map_or(stream.last_sequence, |first| first.saturating_sub(1));
    let new = NewGeneration { created_ns: stream.created_ns, cursor };
    Ok(context.store.bump_generation(&owned.token, new).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::store::LastMessage;

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
        let at = OffsetDateTime::UNIX_EPOCH;
        let key = |key: &str| CursorEvidence::Message(key.to_owned(), at);
        let later = CursorEvidence::Message("a".to_owned(), at + Duration::from_micros(1));
        let before_first_commit = || state(Some(1), None);
        let known = || state(Some(1), Some((10, "a")));
        for (stream, state, found, reset) in [
            (stream(1, 1, 10), known(), key("a"), false),
            (stream(1, 11, 10), known(), CursorEvidence::Nothing, false), // all of it was purged
            (stream(1, 5_001, 5_000), known(), CursorEvidence::Nothing, false), // purged history, idle partition (W9)
            (stream(1, 1, 20), known(), key("b"), true), // cut short and filled again (W4)
            (stream(1, 1, 20), known(), key(""), true),
            (stream(1, 1, 20), known(), later, true), // the same webhook, stored again
            (stream(1, 1, 20), before_first_commit(), CursorEvidence::FirstSince(11), false),
            (stream(1, 1, 20), before_first_commit(), CursorEvidence::FirstSince(10), true),
            (stream(1, 1, 20), before_first_commit(), CursorEvidence::Nothing, false),
            (stream(2, 1, 10), known(), key("a"), true),
            (stream(1, 1, 9), known(), CursorEvidence::Nothing, true),
            (stream(9, 900, 999), state(None, None), CursorEvidence::Nothing, false), // never read before
        ] {
            let judged = judge(&stream, &state, 10, &found);
            assert_eq!(judged.is_some(), reset, "{stream:?} {found:?}: {judged:?}");
        }
    }
}
