//! A partition's log, from its cursor on.
//!
//! In: an owned [`Part`]. Out: envelopes into lanes, in the order of the stream, each counted as unfinished before it
//! is handed on. Acknowledges nothing: what is done is written in Postgres. What can't be decoded is buried with
//! its reason and the reading goes on; what a newer release wrote holds the partition for a newer worker.

use crate::{Workshop, commit, deliver, job::Job, lane::Lanes, part::Part, sweep, tidy};
use async_nats::jetstream;
use shared::{
    codec::envelope::{Envelope, NotDecoded},
    follow::{Follow, Followed, StreamState},
    stream::{STREAM, subjects_of},
    telemetry::Chain,
};
use std::sync::Arc;
use tokio::sync::Semaphore;
use tracing::{error, warn};

/// Between two tries to look up what is parked.
const PAUSE: std::time::Duration = std::time::Duration::from_millis(250);
/// Webhooks of one partition in memory, at most. Reading waits when they are as many.
const WINDOW: u32 = 512;

/// Works a partition until it is to stop or is lost; returns when nothing of it runs any more.
pub async fn run(workshop: Arc<Workshop>, js: jetstream::Context, part: Arc<Part>) {
    let delivering = tokio::spawn(deliver::run(Arc::clone(&workshop), Arc::clone(&part)));
    let over = part.lost.child_token();
    let _sweeping_ends = over.clone().drop_guard();
    if part.owner.partition.number() == sweep::LOCK {
        tokio::spawn(sweep::run(workshop.store.clone(), js.clone(), over.clone()));
        tokio::spawn(tidy::run(workshop.store.clone(), js.clone(), over));
    }
    let window = Arc::new(Semaphore::new(WINDOW as usize));
    tokio::select! {
        _ = part.lost.cancelled() => {}
        _ = part.stop.cancelled() => {}
        _ = read(&workshop, js, &part, &window) => {}
    }
    // All permits back: no webhook of this partition is in memory.
    tokio::select! {
        _ = part.lost.cancelled() => {}
        _ = window.acquire_many(WINDOW) => {}
    }
    if delivering.await.is_err() {
        error!(partition = %part.owner.partition, "delivering panicked");
    }
}

async fn read(
    workshop: &Arc<Workshop>,
    js: jetstream::Context,
    part: &Arc<Part>,
    window: &Arc<Semaphore>,
) {
    let (partition, epoch) = (part.owner.partition, part.owner.epoch);
    let name = format!("p{partition}-e{epoch}-{}", part.owner.worker);
    let next = part.cursor() + 1;
    let mut follow = Follow::new(js.clone(), STREAM, subjects_of(partition), name, next);
    let mut created_ns = part.stream_created_ns;
    // Before anything is read: what is parked comes before what is read of its lane.
    let parked = loop {
        match workshop.store.parked_lanes(&part.owner).await {
            Ok(parked) => break parked,
            Err(error) => {
                warn!(%partition, error = %Chain(&error), "parked lanes could not be looked up")
            }
        }
        tokio::time::sleep(PAUSE).await;
    };
    let lanes = Lanes::new(Arc::clone(workshop), Arc::clone(part), js, &parked);
    loop {
        match follow.next().await {
            Followed::Opened(state) => {
                if let Some(wrong) =
                    is_another_stream(state, part, follow.next_sequence(), created_ns)
                {
                    let cursor = part.cursor();
                    error!(%partition, cursor, wrong, "the stream is not the one that was read: held");
                    return std::future::pending().await;
                }
                if created_ns.is_none() {
                    let noted = workshop.store.note_stream(&part.held(), state.created_ns).await;
                    created_ns = noted.is_ok().then_some(state.created_ns);
                }
                if state.first_sequence > part.cursor() + 1 {
                    let (cursor, first) = (part.cursor(), state.first_sequence);
                    warn!(%partition, cursor, first, "what lay between the cursor and the stream's first is gone");
                }
            }
            Followed::CaughtUp(sequence) => {
                part.skip_to(sequence);
                lanes.skip_to(sequence);
            }
            Followed::Message(sequence, message) => {
                let Ok(permit) = Arc::clone(window).acquire_owned().await else { return };
                part.begin(sequence);
                match Envelope::decode(
                    &message.subject,
                    message.headers.as_ref(),
                    message.payload.clone(),
                ) {
                    Ok(envelope) => lanes.push(Job::read(sequence, envelope, permit)),
                    Err(NotDecoded::Newer(schema)) => {
                        drop(permit);
                        warn!(%partition, sequence, schema, "written by a newer release: held for a newer worker");
                        return std::future::pending().await;
                    }
                    Err(undecodable) => {
                        let raw = (&*message.subject, message.headers.as_ref(), &*message.payload);
                        let why = undecodable.to_string();
                        if commit::bury_undecodable(workshop, part, sequence, raw, &why).await {
                            part.finish(sequence);
                        }
                        lanes.skip_to(sequence);
                    }
                }
            }
        }
    }
}

/// A stream made anew, or one that ends below what was read (it lost its tail): reading on would skip whatever gets the
/// old numbers again.
fn is_another_stream(
    state: StreamState,
    part: &Part,
    next: u64,
    created_ns: Option<i64>,
) -> Option<&'static str> {
    if created_ns.is_some_and(|created_ns| created_ns != state.created_ns) {
        return Some("it was made anew");
    }
    let read = part.cursor().max(next.saturating_sub(1));
    (state.last_sequence < read).then_some("it ends below what was read")
}
