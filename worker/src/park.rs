//! Lanes that were set aside: written to Postgres, and worked from there, in order, with patience.
//!
//! In: jobs that a lane has no room or no luck for. Out: the same, worked in the order of their sequences, until the lane
//! is empty and an ordinary one again. Only what lies at or below the point up to which everything read has been put in
//! its place is worked: after a change of owner an older webhook of the lane may still be on its way out of the stream.

use crate::{
    commit,
    job::Job,
    lane::{Lanes, spilled},
    part::Part,
    work::{self, Worked, work},
};
use async_nats::jetstream::{self, ErrorCode, message::StreamMessage, stream::RawMessageErrorKind};
use shared::{
    codec::envelope::{Envelope, NotDecoded},
    partition::Lane,
    store::{Spilled, StoreError, Trouble},
    stream::{self, STREAM},
    telemetry::Chain,
};
use std::time::Duration;
use tracing::{Instrument, error, warn};

/// Rows looked at together.
const BATCH: i64 = 16;
/// One look at the stream.
const FETCH_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks at Postgres or the stream when they are away, or nothing has come.
const PAUSE: Duration = Duration::from_millis(250);

/// Writes what is to be set aside, until the partition is to stop or is lost.
pub async fn flush(lanes: Lanes) {
    let part = &lanes.inner().part;
    loop {
        tokio::select! {
            _ = part.stop.cancelled() => break,
            _ = part.lost.cancelled() => break,
            _ = lanes.inner().spilled.notified() => {}
        }
        let jobs = lanes.take_buffer();
        if jobs.is_empty() {
            continue;
        }
        let rows: Vec<Spilled> = jobs.iter().map(spilled).collect();
        if !commit::spill(&lanes.inner().workshop, part, &rows).await {
            break;
        }
        lanes.set_aside(jobs);
    }
    // What was not written is not finished: whoever is next reads it again. Their places in the window are free.
    drop(lanes.take_buffer());
}

/// Works a parked lane until it is empty, or the partition is to stop or is lost.
pub async fn drain(lanes: Lanes, lane: Lane, trouble: Trouble) {
    let part = &lanes.inner().part;
    tokio::select! {
        _ = part.stop.cancelled() => {}
        _ = part.lost.cancelled() => {}
        () = drain_patiently(&lanes, lane, trouble) => {}
    }
}

async fn drain_patiently(lanes: &Lanes, lane: Lane, mut trouble: Trouble) {
    let inner = lanes.inner();
    let (store, owner) = (&inner.workshop.store, &inner.part.owner);
    loop {
        match drain_some(lanes, lane, &mut trouble).await {
            Ok(Drained::Some) => {}
            Ok(Drained::Nothing) => {
                // Nothing may be worked now: something is on its way to Postgres, or out of the stream.
                let _ = tokio::time::timeout(PAUSE, inner.flushed.notified()).await;
            }
            Ok(Drained::Empty) => {
                if let Err(error) = store.unpark(owner, lane).await {
                    warn!(%lane, error = %Chain(&error), "an empty lane stays marked as parked");
                }
                return;
            }
            Err(error) => {
                warn!(%lane, error = %Chain(&error), "a parked lane could not be worked");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

enum Drained {
    Some,
    Nothing,
    Empty,
}

async fn drain_some(
    lanes: &Lanes,
    lane: Lane,
    trouble: &mut Trouble,
) -> Result<Drained, StoreError> {
    let inner = lanes.inner();
    let (store, owner) = (&inner.workshop.store, &inner.part.owner);
    let spills = lanes.spills(lane);
    let rows = store.backlog(owner, lane, lanes.flushed_up_to(), BATCH).await?;
    if rows.is_empty() {
        let Some(spills) = spills else { return Ok(Drained::Nothing) };
        let none = store.backlog(owner, lane, u64::MAX, 1).await?.is_empty();
        return Ok(if none && lanes.unpark(lane, spills) {
            Drained::Empty
        } else {
            Drained::Nothing
        });
    }
    for row in rows {
        tokio::time::sleep(trouble.wait).await;
        let Some(job) = fetch(lanes, &row).await else { return Ok(Drained::Nothing) };
        loop {
            let span = work::span(&job);
            match work(&inner.workshop, &inner.part, &job, trouble).instrument(span).await {
                Worked::Finished => break,
                Worked::Left => {
                    // As in a lane: nothing behind an unfinished webhook may run.
                    if !inner.part.stop.is_cancelled() {
                        inner.part.lost.cancel();
                    }
                    return std::future::pending().await;
                }
                Worked::Paused(_) => tokio::time::sleep(PAUSE).await,
                Worked::Again(error) => {
                    store.note_trouble(owner, lane, *trouble, &error).await?;
                    tokio::time::sleep(trouble.wait).await;
                }
            }
        }
        if std::mem::take(trouble) != Trouble::default() {
            // Insisted on: the tries of one webhook must not be charged to the next, by us or by the owner after us.
            while let Err(error) = store.note_trouble(owner, lane, *trouble, "").await {
                warn!(%lane, error = %Chain(&error), "that a lane is well again could not be written down");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    Ok(Drained::Some)
}

/// A webhook out of the stream. What is not there any more, or can't be read, is buried: nothing may stop its lane.
async fn fetch(lanes: &Lanes, row: &Spilled) -> Option<Job> {
    let inner = lanes.inner();
    let (workshop, part) = (&inner.workshop, &inner.part);
    match tokio::time::timeout(FETCH_TIMEOUT, read(&inner.js, part, row.sequence)).await {
        Ok(Ok(Found::Message(message))) => {
            let (subject, headers) = (&*message.subject, Some(&message.headers));
            match Envelope::decode(subject, headers, message.payload.clone()) {
                Ok(envelope) if envelope.dedupe == row.dedupe => {
                    return Some(Job::set_aside(row.sequence, envelope));
                }
                Ok(other) => {
                    error!(sequence = row.sequence, is = %other.dedupe, "the stream has another webhook there");
                    return kept_or_buried(lanes, row).await;
                }
                // For a newer worker, which holds the lane until then.
                Err(NotDecoded::Newer(_)) => tokio::time::sleep(PAUSE).await,
                Err(why) => {
                    let raw = (subject, headers, &*message.payload);
                    commit::bury_undecodable(workshop, part, row.sequence, raw, &why.to_string())
                        .await;
                }
            }
        }
        Ok(Ok(Found::Nothing)) => {
            return kept_or_buried(lanes, row).await;
        }
        // The reader is about to notice, too, and settles what was set aside.
        Ok(Ok(Found::AnotherStream)) => tokio::time::sleep(PAUSE).await,
        Ok(Err(_)) | Err(_) => tokio::time::sleep(PAUSE).await, // NATS is away
    }
    None
}

/// A webhook that the stream does not have any more: out of Postgres, if its bytes were kept there; else buried.
async fn kept_or_buried(lanes: &Lanes, row: &Spilled) -> Option<Job> {
    let inner = lanes.inner();
    let (workshop, part) = (&inner.workshop, &inner.part);
    match workshop.store.kept_bytes(part.owner.generation, row.sequence, row.connection).await {
        Ok(Some(kept)) => {
            let subject = stream::subject(part.owner.partition, row.connection);
            let headers = commit::unlisted(&kept.headers);
            match Envelope::decode(&subject, Some(&headers), kept.body.clone().into()) {
                Ok(envelope) => return Some(Job::set_aside(row.sequence, envelope)),
                Err(NotDecoded::Newer(_)) => tokio::time::sleep(PAUSE).await,
                Err(why) => {
                    error!(sequence = row.sequence, %why, "its kept bytes are no envelope");
                    commit::bury_gone(workshop, part, &part.owner, row, Some(kept)).await;
                }
            }
            return None;
        }
        Ok(None) => {}
        Err(error) => {
            warn!(sequence = row.sequence, error = %Chain(&error), "kept bytes could not be looked up");
            tokio::time::sleep(PAUSE).await;
            return None;
        }
    }
    error!(sequence = row.sequence, "a parked webhook is not in the stream any more");
    commit::bury_gone(workshop, part, &part.owner, row, None).await;
    None
}

/// What is found at a sequence.
enum Found {
    Message(StreamMessage),
    Nothing,
    /// The sequence was another stream's.
    AnotherStream,
}

async fn read(
    js: &jetstream::Context,
    part: &Part,
    sequence: u64,
) -> Result<Found, async_nats::Error> {
    let stream = js.get_stream(STREAM).await?;
    let created_ns = stream.cached_info().created.unix_timestamp_nanos() as i64;
    if part.stream_created_ns.get().is_some_and(|known| *known != created_ns) {
        return Ok(Found::AnotherStream);
    }
    match stream.get_raw_message(sequence).await {
        Ok(message) => Ok(Found::Message(message)),
        Err(error) => match error.kind() {
            RawMessageErrorKind::NoMessageFound => Ok(Found::Nothing),
            RawMessageErrorKind::JetStream(e) if e.error_code() == ErrorCode::NO_MESSAGE_FOUND => {
                Ok(Found::Nothing)
            }
            _ => Err(error.into()),
        },
    }
}
