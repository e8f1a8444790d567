//! A partition's log, from its cursor on.
//!
//! In: an owned [`Part`]. Out: envelopes into lanes, in the order of the stream, each counted as unfinished before it
//! is handed on. Acknowledges nothing: what is done is written in Postgres. What can't be decoded is buried with
//! its reason and the reading goes on; what a newer release wrote holds the partition for a newer worker.

use crate::{
    Workshop, commit, deliver,
    generation::{self, Another},
    job::Job,
    lane::Lanes,
    part::Part,
    redrive, sweep, tidy,
};
use async_nats::jetstream;
use shared::{
    codec::envelope::{Envelope, NotDecoded},
    follow::{Follow, Followed},
    stream::{STREAM, subjects_of},
    telemetry::Chain,
};
use std::{sync::Arc, time::Duration};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::{error, warn};

/// Between two tries to look up what is parked.
const PAUSE: Duration = Duration::from_millis(250);
/// While reading waits for room, what waits behind it is counted this often.
const COUNT_EVERY: Duration = Duration::from_secs(2);
/// Webhooks of one partition in memory, at most. Reading waits when they are as many.
const WINDOW: u32 = 512;

/// Works a partition until it is to stop or is lost; returns when nothing of it runs any more.
pub async fn run(workshop: Arc<Workshop>, js: jetstream::Context, part: Arc<Part>) {
    let delivering = tokio::spawn(deliver::run(Arc::clone(&workshop), Arc::clone(&part)));
    let redriving = tokio::spawn(redrive::run(Arc::clone(&workshop), Arc::clone(&part)));
    let over = part.lost.child_token();
    let _sweeping_ends = over.clone().drop_guard();
    if part.owner.partition.number() == sweep::LOCK {
        tokio::spawn(sweep::run(workshop.store.clone(), js.clone(), over.clone()));
        tokio::spawn(tidy::run(Arc::clone(&workshop), js.clone(), over));
    }
    let window = Arc::new(Semaphore::new(WINDOW as usize));
    let another = tokio::select! {
        _ = part.lost.cancelled() => None,
        _ = part.stop.cancelled() => None,
        another = read(&workshop, &js, &part, &window) => another,
    };
    // All permits back: no webhook of this partition is in memory.
    let in_memory = async { drop(window.acquire_many(WINDOW).await) };
    match another {
        Some(another) => generation::raise(&workshop, &js, &part, another, in_memory).await,
        None => tokio::select! { _ = part.lost.cancelled() => {}, () = in_memory => {} },
    }
    if delivering.await.is_err() || redriving.await.is_err() {
        error!(partition = %part.owner.partition, "delivering or redriving panicked");
    }
}

/// Reads until the stream turns out to be another than the one that was read.
async fn read(
    workshop: &Arc<Workshop>,
    js: &jetstream::Context,
    part: &Arc<Part>,
    window: &Arc<Semaphore>,
) -> Option<Another> {
    let (partition, epoch) = (part.owner.partition, part.owner.epoch);
    let name = format!("p{partition}-e{epoch}-{}", part.owner.worker);
    let next = part.cursor() + 1;
    let mut follow = Follow::new(js.clone(), STREAM, subjects_of(partition), name, next);
    let mut settle_after = part.settle_after;
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
    let lanes = Lanes::new(Arc::clone(workshop), Arc::clone(part), js.clone(), &parked);
    workshop.metrics.watch(part, &lanes);
    loop {
        match follow.next().await {
            Followed::Opened(state) => {
                let known = part.stream_created_ns.get().copied();
                let next = follow.next_sequence();
                if let Some(another) = generation::check(state, known, part.cursor(), next) {
                    return Some(another);
                }
                if known.is_none() {
                    // Before anything of it is read, or another that takes its place would not be told from it.
                    while let Err(error) =
                        workshop.store.note_stream(&part.held(), state.created_ns).await
                    {
                        warn!(%partition, error = %Chain(&error), "which stream is read could not be noted");
                        tokio::time::sleep(PAUSE).await;
                    }
                    part.stream_created_ns.get_or_init(|| state.created_ns);
                }
            }
            Followed::CaughtUp(sequence, seen_at) => {
                part.skip_to(sequence, seen_at);
                lanes.skip_to(sequence);
                if settle_after.is_some_and(|after| part.cursor() >= after)
                    && generation::settle(workshop, part).await
                {
                    settle_after = None;
                }
            }
            Followed::Message(at, message) => {
                let sequence = at.sequence;
                part.waiting(at.waiting);
                let permit = room(window, part, &mut follow).await?;
                part.begin(sequence, at.stored_at);
                match Envelope::decode(
                    &message.subject,
                    message.headers.as_ref(),
                    message.payload.clone(),
                ) {
                    Ok(envelope) => lanes.push(Job::read(at, envelope, permit)),
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

/// A place in the window. While there is none, what waits behind is counted all the same: scaling hangs on it.
async fn room(
    window: &Arc<Semaphore>,
    part: &Part,
    follow: &mut Follow,
) -> Option<OwnedSemaphorePermit> {
    let mut taking = std::pin::pin!(Arc::clone(window).acquire_owned());
    loop {
        tokio::select! {
            permit = &mut taking => return permit.ok(),
            _ = tokio::time::sleep(COUNT_EVERY) => {
                if let Some(waiting) = follow.waiting().await {
                    part.waiting(waiting);
                }
            }
        }
    }
}
