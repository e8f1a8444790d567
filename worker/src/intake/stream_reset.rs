//! Detects stream resets: a stream that was recreated, truncated and filled again, or restored.
//!
//! A stream is identified by its creation time and by the last committed message of the partition,
//! whose dedup key and server time must be at its sequence. A missing message proves nothing, since
//! it may have been purged. Before the first commit of a generation no message is known; then no
//! message since the time of the cursor may be below the cursor.
//!
//! After a reset, reading from the cursor would skip the messages that got the old sequences. So
//! the generation is raised, and the partition is read again from the server time of its cursor.
//! Processed keys prevent duplicate effects.

use super::owned_partition::OwnedPartition;
use crate::context::Context;
use async_nats::jetstream::{self, stream::RawMessageErrorKind};
use shared::{
    runtime::telemetry::ErrorChain,
    store::{CursorState, NewGeneration, replace_nul},
    stream::{self, BoxError, DEDUP_KEY_HEADER, STREAM, StreamState, subject_filter},
};
use std::time::Duration;
use time::OffsetDateTime;
use tracing::{error, warn};

/// Wait before another attempt.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);

/// Result of a comparison of the stream with the one that was read.
#[derive(Debug, Clone, Copy)]
pub enum StreamCheck {
    Unchanged,
    Reset(StreamReset),
    /// The partition is to be released meanwhile.
    Stopped,
}

#[derive(Debug, Clone, Copy)]
pub struct StreamReset {
    reason: &'static str,
    stream: StreamState,
}

/// Content of the stream at the cursor.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Evidence {
    /// Dedup key and server time of the message at the sequence of the last committed one.
    Message(String, OffsetDateTime),
    /// Sequence of the first message of the partition since the time of the cursor, when no last
    /// committed message is known.
    FirstSince(u64),
    Nothing,
}

/// Compares an opened stream with the one that was read. Waits until NATS answers or the partition
/// is to be released.
pub async fn check(
    js: &jetstream::Context,
    owned: &OwnedPartition,
    stream: &StreamState,
    state: &CursorState,
    cursor: u64,
) -> StreamCheck {
    let finding = async {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match find(js, owned, state, attempt).await {
                Ok(found) => break found,
                Err(error) => {
                    warn!(%error, "failed to read the last committed message from the stream")
                }
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    };
    let Some(found) = owned.stop.run_until_cancelled(finding).await else {
        return StreamCheck::Stopped;
    };
    match reset_evidence(stream, state, cursor, &found) {
        Some(reason) => StreamCheck::Reset(StreamReset { reason, stream: *stream }),
        None => StreamCheck::Unchanged,
    }
}

async fn find(
    js: &jetstream::Context,
    owned: &OwnedPartition,
    state: &CursorState,
    attempt: u32,
) -> Result<Evidence, BoxError> {
    let Some(last) = &state.last else {
        if state.cursor == 0 {
            return Ok(Evidence::Nothing);
        }
        let first = first_since_cursor(js, owned, state, format!("first-{attempt}")).await?;
        return Ok(first.map_or(Evidence::Nothing, Evidence::FirstSince));
    };
    let stream = js.get_stream_no_info(STREAM).await?;
    match stream.get_raw_message(last.sequence).await {
        Ok(message) => {
            let key = message.headers.get(DEDUP_KEY_HEADER).map(|key| key.as_str().to_owned());
            Ok(Evidence::Message(key.unwrap_or_default(), message.time))
        }
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(Evidence::Nothing),
        Err(error) => Err(error.into()),
    }
}

/// Returns the first sequence of the partition since the server time of the cursor. `reader` names
/// the consumer, which must be new for each attempt: a consumer delivers its first message once.
async fn first_since_cursor(
    js: &jetstream::Context,
    owned: &OwnedPartition,
    state: &CursorState,
    reader: String,
) -> Result<Option<u64>, BoxError> {
    let since = state.last.as_ref().map_or(state.read_through, |last| last.stored_at);
    let reader = format!("p{}-e{}-{reader}", owned.partition(), owned.token.epoch);
    let stream = js.get_stream(STREAM).await?;
    stream::first_since(&stream, subject_filter(owned.partition()), since, reader).await
}

/// Returns the evidence of a reset, or `None` if the stream is the same.
fn reset_evidence(
    stream: &StreamState,
    state: &CursorState,
    cursor: u64,
    found: &Evidence,
) -> Option<&'static str> {
    // A stream is recorded before the first commit from it.
    let created_ns = state.stream_created_ns?;
    if created_ns != stream.created_ns {
        Some("the stream was recreated")
    } else if stream.last_sequence < cursor {
        Some("the stream ends below the cursor")
    } else {
        match (found, &state.last) {
            (Evidence::Message(key, stored_at), Some(last))
                if replace_nul(key) != replace_nul(&last.key)
                    || micros(*stored_at) != micros(last.stored_at) =>
            {
                Some("another message is at the sequence of the last commit")
            }
            (Evidence::FirstSince(first), None) if *first <= cursor => {
                Some("messages since the time of the cursor are below it")
            }
            _ => None,
        }
    }
}

/// Converts a time to microseconds since 1970, the precision of Postgres.
fn micros(at: OffsetDateTime) -> i128 {
    at.unix_timestamp_nanos() / 1_000
}

/// Raises the partition's generation and gives up the partition. The next owner reads the new
/// stream.
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
        %partition, cursor = state.cursor, first_sequence, last_sequence, reason = reset.reason,
        "stream reset detected; the partition is read again from the time of its cursor"
    );
    context.metrics.record_stream_reset();
    for attempt in 1.. {
        match try_bump(context, js, owned, state, reset.stream, attempt).await {
            Ok(true) => break,
            Ok(false) => {
                warn!(%partition, "partition lost to another worker");
                break;
            }
            Err(error) => {
                warn!(%partition, error = %ErrorChain(&*error), "failed to raise the generation");
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
) -> Result<bool, BoxError> {
    let first = first_since_cursor(js, owned, state, format!("since-{attempt}")).await?;
    let cursor = first.map_or(stream.last_sequence, |first| first.saturating_sub(1));
    let new = NewGeneration { created_ns: stream.created_ns, cursor };
    Ok(context.store.bump_generation(&owned.token, new).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_nats::ConnectOptions;
    use shared::{
        store::{FencingToken, LastMessage, Lease},
        stream::Partition,
    };

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
    fn distinguishes_reset_from_purge() {
        let stream = |created_ns, first_sequence, last_sequence| StreamState {
            created_ns,
            first_sequence,
            last_sequence,
        };
        let at = OffsetDateTime::UNIX_EPOCH;
        let key = |key: &str| Evidence::Message(key.to_owned(), at);
        let later = Evidence::Message("a".to_owned(), at + Duration::from_micros(1));
        let before_first_commit = || state(Some(1), None);
        let known = || state(Some(1), Some((10, "a")));
        for (stream, state, found, reset) in [
            (stream(1, 1, 10), known(), key("a"), false),
            // Postgres stores no NUL, and the state in memory may have one.
            (stream(1, 1, 10), state(Some(1), Some((10, "a\u{fffd}"))), key("a\0"), false),
            (stream(1, 1, 10), state(Some(1), Some((10, "a\0"))), key("a\0"), false),
            (stream(1, 11, 10), known(), Evidence::Nothing, false), // purged
            (stream(1, 5_001, 5_000), known(), Evidence::Nothing, false), // purged while idle
            (stream(1, 1, 20), known(), key("b"), true),            // truncated, refilled
            (stream(1, 1, 20), known(), key(""), true),
            (stream(1, 1, 20), known(), later, true), // the same webhook, stored again
            (stream(1, 1, 20), before_first_commit(), Evidence::FirstSince(11), false),
            (stream(1, 1, 20), before_first_commit(), Evidence::FirstSince(10), true),
            (stream(1, 1, 20), before_first_commit(), Evidence::Nothing, false),
            (stream(2, 1, 10), known(), key("a"), true),
            (stream(1, 1, 9), known(), Evidence::Nothing, true),
            (stream(9, 900, 999), state(None, None), Evidence::Nothing, false), // never read
        ] {
            let evidence = reset_evidence(&stream, &state, 10, &found);
            assert_eq!(evidence.is_some(), reset, "{stream:?} {found:?}: {evidence:?}");
        }
    }

    #[tokio::test]
    async fn stops_check_without_nats() {
        let client = ConnectOptions::new().retry_on_initial_connect().connect("127.0.0.1:1").await;
        let js = jetstream::new(client.expect("a client without a connection"));
        let partition = Partition::try_from(0).expect("0 is a partition");
        let token = FencingToken { partition, epoch: 1, generation: 1 };
        let state = state(Some(1), Some((10, "a")));
        let lease = Lease { token, state: state.clone(), claims: 1, is_suspecting: false };
        let owned = OwnedPartition::new(&lease, tokio::time::Instant::now());
        let stream = StreamState { created_ns: 1, first_sequence: 1, last_sequence: 10 };
        let checking = check(&js, &owned, &stream, &state, 10);
        let stopping = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            owned.stop.cancel();
        };
        let both = async { tokio::join!(checking, stopping).0 };
        let checked = tokio::time::timeout(RETRY_INTERVAL, both).await.expect("it ends");
        assert!(matches!(checked, StreamCheck::Stopped), "{checked:?}");
    }
}
