//! A stream that is not the one that was read: made anew, cut short, or with a hole where nobody had read yet.
//!
//! In: the stream as a reader found it, and how far the partition is. Out: nothing, when all is well; else an alarm, a raised
//! generation, and the partition given back, to be read again from the time before which all of it was finished.
//! Reading on instead would skip whatever gets the old numbers again, and nobody would know.

use crate::{Workshop, commit, part::Part};
use async_nats::jetstream;
use shared::{
    follow::{self, Broken, StreamState},
    store::{Owner, Spilled, StoreError},
    stream::{STREAM, subjects_of},
    telemetry::Chain,
};
use std::time::Duration;
use time::OffsetDateTime;
use tracing::{error, warn};

/// Clocks of the stream's servers and ours may differ by this much.
const MARGIN: Duration = Duration::from_secs(60);
/// What is in memory may take this long to end; nothing of it can be read again in the new stream.
const FINISH_WITHIN: Duration = Duration::from_secs(8);
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(250);

/// Another stream than the one that was read.
#[derive(Debug, Clone, Copy)]
pub struct Another {
    why: &'static str,
    state: StreamState,
}

/// Compares the stream with what was read of it; `next` is the first sequence that was not.
pub fn check(
    state: StreamState,
    created_ns: Option<i64>,
    cursor: u64,
    next: u64,
) -> Option<Another> {
    // Before anything was noted nothing was read, and the stream may begin and end where it likes.
    let created_ns = created_ns?;
    let read = cursor.max(next.saturating_sub(1));
    let why = if created_ns != state.created_ns {
        "it was made anew"
    } else if state.last_sequence < read {
        "it ends below what was read"
    } else if state.first_sequence > next {
        "what came next is not in it any more"
    } else {
        return None;
    };
    Some(Another { why, state })
}

/// Raises the partition's generation and lets it go. `in_memory` ends when nothing of it is in memory any more.
pub async fn raise(
    workshop: &Workshop,
    js: &jetstream::Context,
    part: &Part,
    another: Another,
    in_memory: impl Future<Output = ()>,
) {
    let (partition, cursor) = (part.owner.partition, part.cursor());
    let StreamState { first_sequence, last_sequence, .. } = another.state;
    error!(
        %partition, cursor, first_sequence, last_sequence, why = another.why,
        "the stream is not the one that was read: raising the generation, reading again from what was unfinished"
    );
    workshop.metrics.generation_raised();
    let _ = tokio::time::timeout(FINISH_WITHIN, in_memory).await;
    for attempt in 1.. {
        match try_raise(workshop, js, part, another.state, attempt).await {
            Ok(true) => break,
            Ok(false) => {
                warn!(%partition, "somebody else has the partition already");
                break;
            }
            Err(error) => {
                warn!(%partition, error = %Chain(&*error), "the generation could not be raised; trying again");
            }
        }
        tokio::select! {
            _ = part.lost.cancelled() => return,
            _ = part.stop.cancelled() => return, // whoever is next finds the same
            _ = tokio::time::sleep(PAUSE) => {}
        }
    }
    part.lost.cancel();
}

async fn try_raise(
    workshop: &Workshop,
    js: &jetstream::Context,
    part: &Part,
    state: StreamState,
    attempt: u32,
) -> Result<bool, Broken> {
    let (store, held) = (&workshop.store, part.held());
    let since = store.unfinished_since(&held).await?;
    let since = since.checked_sub(MARGIN.try_into()?).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let stream = js.get_stream(STREAM).await?;
    // A name of its own for every try: the reader of the one before has given out the first message already.
    let reader = format!("p{}-e{}-since-{attempt}", held.partition, held.epoch);
    let first = follow::first_since(&stream, subjects_of(held.partition), since, reader).await?;
    let cursor = first.map_or(state.last_sequence, |first| first.saturating_sub(1));
    Ok(store.raise_generation(&held, state.created_ns, cursor, state.last_sequence).await?)
}

/// Once the partition was read to where its new generation began: buries what is left over of the older ones.
/// True when nothing is.
pub async fn settle(workshop: &Workshop, part: &Part) -> bool {
    match try_settle(workshop, part).await {
        Ok(settled) => settled,
        Err(error) => {
            let partition = part.owner.partition;
            warn!(%partition, error = %Chain(&error), "what older generations left over could not be settled");
            false
        }
    }
}

async fn try_settle(workshop: &Workshop, part: &Part) -> Result<bool, StoreError> {
    let mut all = true;
    for left in workshop.store.leftovers(&part.owner).await? {
        error!(partition = %part.owner.partition, sequence = left.sequence, "it was parked in a stream that is gone");
        let owner = Owner { generation: left.generation, ..part.owner.clone() };
        let row = Spilled {
            lane: left.lane,
            sequence: left.sequence,
            connection: left.connection,
            dedupe: left.dedupe,
            stored_at: None,
        };
        // Bytes that can't be opened may be again, with the key that is missing: they are kept, and hold up none of the others.
        let kept = workshop.store.kept_bytes(left.generation, left.sequence, row.connection).await;
        let kept = match kept {
            Ok(kept) => kept,
            Err(error @ StoreError::Inconsistent { .. }) => {
                error!(sequence = left.sequence, error = %Chain(&error), "its bytes can't be opened: is a key missing in TIDEGATE_TOKEN_KEYS?");
                all = false;
                continue;
            }
            Err(error) => return Err(error),
        };
        if !commit::bury_gone(workshop, part, &owner, &row, kept).await {
            return Ok(false);
        }
    }
    if all {
        workshop.store.settled(&part.owner).await?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(created_ns: i64, first_sequence: u64, last_sequence: u64) -> StreamState {
        StreamState { created_ns, first_sequence, last_sequence }
    }

    #[test]
    fn another_stream_is_noticed_and_the_same_is_not() {
        let why = |state, created, cursor, next| check(state, created, cursor, next).map(|a| a.why);
        assert_eq!(why(state(1, 1, 10), Some(1), 10, 11), None);
        assert_eq!(why(state(1, 11, 10), Some(1), 10, 11), None, "all of it was purged");
        assert_eq!(why(state(1, 900, 999), None, 0, 1), None, "nothing was read before");
        assert_eq!(why(state(2, 1, 10), Some(1), 10, 11), Some("it was made anew"));
        assert_eq!(why(state(1, 1, 9), Some(1), 10, 11), Some("it ends below what was read"));
        assert_eq!(why(state(1, 1, 9), Some(1), 5, 11), Some("it ends below what was read"));
        assert_eq!(
            why(state(1, 12, 20), Some(1), 10, 11),
            Some("what came next is not in it any more")
        );
    }
}
