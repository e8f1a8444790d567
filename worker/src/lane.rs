//! One webhook at a time per conversation, many conversations at once, and no conversation holds up another.
//!
//! In: the jobs of a partition, in the order of the stream. Out: each worked to its end before the next of its lane
//! begins. A lane with something to do has a task. A lane that gets too deep, or whose head failed twice, is *parked*: its
//! jobs are set aside in Postgres (see `park`), and the cursor passes them. The order stays: what is in memory comes
//! before what was set aside, and while anything is set aside whatever comes is set aside behind it.

use crate::{
    Workshop,
    job::Job,
    park,
    part::Part,
    work::{self, Worked, work},
};
use async_nats::jetstream;
use shared::{
    partition::Lane,
    store::{ParkedLane, Spilled, Trouble},
};
use std::{
    collections::{BTreeSet, HashMap, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};
use tokio::sync::Notify;
use tracing::{Instrument, info};

/// Jobs that wait in memory behind the one that runs, at most.
const DEPTH_MAX: usize = 32;
/// A head is tried so often in place before its lane is parked.
const TRIES_IN_PLACE: i32 = 2;
/// Between two looks at a Postgres that is away.
const PAUSE: Duration = Duration::from_millis(500);

/// How much of a partition's lanes is in memory.
#[derive(Debug, Clone, Copy, Default)]
pub struct Depth {
    /// Lanes that are worked.
    pub lanes: usize,
    /// Webhooks that wait behind the one that runs.
    pub queued: usize,
    /// Of the deepest lane, the one that runs included.
    pub deepest: usize,
}

/// The lanes of one partition. Cheap to clone.
#[derive(Clone)]
pub struct Lanes(Arc<Inner>);

/// The lanes of a partition, for as long as somebody else works them.
#[derive(Clone)]
pub struct WeakLanes(Weak<Inner>);

impl WeakLanes {
    /// The lanes, if they are still worked.
    pub fn upgrade(&self) -> Option<Lanes> {
        self.0.upgrade().map(Lanes)
    }
}

pub(crate) struct Inner {
    pub workshop: Arc<Workshop>,
    pub part: Arc<Part>,
    pub js: jetstream::Context,
    table: Mutex<Table>,
    /// Something is to be set aside.
    pub spilled: Notify,
    /// Something was set aside.
    pub flushed: Notify,
}

#[derive(Default)]
struct Table {
    lanes: HashMap<Lane, State>,
    /// Everything up to here has been put into its lane.
    position: u64,
    /// To be set aside, in order.
    buffer: Vec<Job>,
    /// Set aside in memory, not yet in Postgres.
    unflushed: BTreeSet<u64>,
}

#[derive(Default)]
struct State {
    /// A task works it, from memory.
    running: bool,
    /// Waiting behind the one that runs.
    queue: VecDeque<Job>,
    /// Whatever comes is set aside.
    parked: bool,
    /// Of the buffer and what is being written.
    unflushed: usize,
    /// How often something was set aside: tells a drainer whether anything came while it looked.
    spills: u64,
}

impl Lanes {
    /// The lanes of a partition; those that were parked by an owner before us stay so.
    pub fn new(
        workshop: Arc<Workshop>,
        part: Arc<Part>,
        js: jetstream::Context,
        parked: &[ParkedLane],
    ) -> Self {
        let mut table = Table { position: part.cursor(), ..Table::default() };
        for lane in parked {
            table.lanes.insert(lane.lane, State { parked: true, ..State::default() });
        }
        let (spilled, flushed) = (Notify::new(), Notify::new());
        let lanes = Self(Arc::new(Inner {
            workshop,
            part,
            js,
            table: Mutex::new(table),
            spilled,
            flushed,
        }));
        tokio::spawn(park::flush(lanes.clone()));
        for lane in parked {
            tokio::spawn(park::drain(lanes.clone(), lane.lane, lane.trouble));
        }
        lanes
    }

    /// Puts a job at the end of its lane.
    pub fn push(&self, job: Job) {
        let lane = job.envelope.lane;
        let mut table = self.table();
        table.position = table.position.max(job.sequence);
        let state = table.lanes.entry(lane).or_default();
        state.parked |= state.running && state.queue.len() >= DEPTH_MAX;
        if state.parked {
            table.spill(job);
            self.0.spilled.notify_one();
        } else if state.running {
            state.queue.push_back(job);
        } else {
            state.running = true;
            tokio::spawn(run(self.clone(), lane, job));
        }
    }

    /// Nothing of this partition lies between what was pushed and here.
    pub fn skip_to(&self, sequence: u64) {
        let mut table = self.table();
        table.position = table.position.max(sequence);
    }

    /// Everything up to here is in memory's lanes or in Postgres: what was set aside beyond it may still be overtaken
    /// by something older that is not read yet.
    pub(crate) fn flushed_up_to(&self) -> u64 {
        let table = self.table();
        table.unflushed.first().map_or(table.position, |first| first - 1)
    }

    /// Takes what is to be set aside.
    pub(crate) fn take_buffer(&self) -> Vec<Job> {
        std::mem::take(&mut self.table().buffer)
    }

    /// These are in Postgres now, and finished as far as the cursor is concerned.
    pub(crate) fn set_aside(&self, jobs: Vec<Job>) {
        let mut table = self.table();
        for job in &jobs {
            self.0.part.finish(job.sequence);
            table.unflushed.remove(&job.sequence);
            if let Some(state) = table.lanes.get_mut(&job.envelope.lane) {
                state.unflushed -= 1;
            }
        }
        drop(table);
        self.0.flushed.notify_waiters();
    }

    /// How often something was set aside of a lane, if all of that is in Postgres.
    pub(crate) fn spills(&self, lane: Lane) -> Option<u64> {
        let table = self.table();
        table.lanes.get(&lane).filter(|state| state.unflushed == 0).map(|state| state.spills)
    }

    /// Makes a parked lane an ordinary one again, if nothing came while Postgres was seen to be empty.
    pub(crate) fn unpark(&self, lane: Lane, spills: u64) -> bool {
        let mut table = self.table();
        match table.lanes.entry(lane) {
            Entry::Occupied(state)
                if state.get().unflushed == 0 && state.get().spills == spills =>
            {
                state.remove();
                true
            }
            _ => false,
        }
    }

    /// To look at, without keeping them.
    pub fn downgrade(&self) -> WeakLanes {
        WeakLanes(Arc::downgrade(&self.0))
    }

    /// How much of it is in memory.
    pub fn depth(&self) -> Depth {
        let table = self.table();
        let running = table.lanes.values().filter(|state| state.running);
        running.fold(Depth::default(), |depth, state| Depth {
            lanes: depth.lanes + 1,
            queued: depth.queued + state.queue.len(),
            deepest: depth.deepest.max(state.queue.len() + 1),
        })
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What comes after a job that is finished, if anything of it is in memory.
    fn next(&self, lane: Lane) -> Option<Job> {
        let mut table = self.table();
        let state = table.lanes.get_mut(&lane)?;
        // What has not begun when we stop is left to the next owner.
        let next = state.queue.pop_front().filter(|_| !self.0.part.stop.is_cancelled());
        if next.is_none() {
            state.running = false;
            // What waits behind it goes with the lane: its places in the window are what the drain waits for.
            let parked = state.parked && !self.0.part.stop.is_cancelled();
            if parked {
                tokio::spawn(park::drain(self.clone(), lane, Trouble::default()));
            } else {
                table.lanes.remove(&lane);
            }
        }
        next
    }

    /// Sets a lane aside, from its head on.
    fn park(&self, lane: Lane, head: Job, trouble: Trouble, why: &str) {
        info!(%lane, sequence = head.sequence, why, "parked");
        let mut table = self.table();
        if self.0.part.stop.is_cancelled() {
            table.lanes.remove(&lane); // nobody writes down any more what is set aside: the next owner reads it
            return;
        }
        let state = table.lanes.entry(lane).or_default();
        (state.parked, state.running) = (true, false);
        let queue = std::mem::take(&mut state.queue);
        for job in std::iter::once(head).chain(queue) {
            table.spill(job);
        }
        drop(table);
        self.0.spilled.notify_one();
        tokio::spawn(park::drain(self.clone(), lane, trouble));
    }
}

impl Table {
    fn spill(&mut self, job: Job) {
        let state = self.lanes.entry(job.envelope.lane).or_default();
        state.unflushed += 1;
        state.spills += 1;
        self.unflushed.insert(job.sequence);
        self.buffer.push(job);
    }
}

/// The row that a job becomes.
pub(crate) fn spilled(job: &Job) -> Spilled {
    let envelope = &job.envelope;
    Spilled {
        lane: envelope.lane,
        sequence: job.sequence,
        connection: envelope.connection,
        dedupe: envelope.dedupe.clone(),
        stored_at: job.stored_at,
    }
}

/// Works a lane from memory, until it has nothing to do, is parked, or is left.
async fn run(lanes: Lanes, lane: Lane, first: Job) {
    let part = Arc::clone(&lanes.0.part);
    let mut next = Some(first);
    while let Some(job) = next {
        let worked = tokio::select! {
            _ = part.lost.cancelled() => InPlace::Left,
            worked = in_place(&lanes, &job).instrument(work::span(&job)) => worked,
        };
        match worked {
            InPlace::Finished => {
                part.finish(job.sequence);
                next = lanes.next(lane);
            }
            InPlace::Park(trouble, why) => {
                lanes.park(lane, job, trouble, &why);
                return;
            }
            InPlace::Left => {
                // Nothing behind an unfinished webhook may run. When we don't stop anyway, the whole partition is let
                // go: whoever is next reads it again.
                if !part.stop.is_cancelled() {
                    part.lost.cancel();
                }
                lanes.table().lanes.remove(&lane);
                return;
            }
        }
    }
}

enum InPlace {
    Finished,
    Park(Trouble, String),
    Left,
}

/// Tries a head where it is: once more after a moment, then its lane is parked.
async fn in_place(lanes: &Lanes, job: &Job) -> InPlace {
    let (workshop, part) = (&lanes.0.workshop, &lanes.0.part);
    let mut trouble = Trouble::default();
    loop {
        let wait = match work(workshop, part, job, &mut trouble).await {
            Worked::Finished => return InPlace::Finished,
            Worked::Left => return InPlace::Left,
            Worked::Again(why) if trouble.attempts >= TRIES_IN_PLACE => {
                return InPlace::Park(trouble, why);
            }
            Worked::Again(_) => trouble.wait,
            Worked::Paused(_) => PAUSE,
        };
        tokio::select! {
            _ = part.stop.cancelled() => return InPlace::Left,
            _ = tokio::time::sleep(wait) => {}
        }
    }
}
