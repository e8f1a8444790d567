//! Dispatch (DESIGN.md 5.2): lanes with head and tail, agent slots, workers with a TTL.
//!
//! Two lanes of one agent, two processes. Statements run as in Postgres under `read committed`: a statement is
//! planned and reads a snapshot when it begins; what it writes is re-checked against the newest version of the rows
//! that it locks. So a statement that reads something has two steps, "begin" and "execute", and between them anything
//! may happen. A result may be lost; then a statement may execute at any later time.

mod protocol;
mod statements;
mod table;

pub use table::MUTATIONS;

use table::Mutation;

const LANES: usize = 2;
/// Ids of processes: each process may start three times.
const IDS: usize = 6;

/// Dispatch of some of three deliveries: 0 and 1 in lane 0, 2 in lane 1.
struct Dispatch {
    mutation: Mutation,
    deliveries: &'static [u8],
    slots: usize,
    faults: Faults,
}

/// Faults that may still happen.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Faults {
    crashes: u8,
    freezes: u8,
    /// Processes that lose Postgres, but run.
    cuts: u8,
    lost_results: u8,
    /// Attempts that fail and are repeated.
    failures: u8,
    /// Orderly stops: no fault for those who wait.
    stops: u8,
}

/// The right to end what a take started.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
struct Fence {
    id: usize,
    head: u8,
    attempts: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
struct Lane {
    head: u8,
    tail: u8,
    /// The delivery at each position from 1 on.
    rows: [Option<u8>; 2],
    worker: Option<usize>,
    attempts: u8,
    is_due: bool,
}

/// The row of a process in `workers`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
enum WorkerRow {
    Absent,
    Alive,
    /// Marked by somebody who noticed; no statement under its id begins any more.
    Expired,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
enum Condition {
    Up,
    /// Postgres can't be reached.
    Cut,
    Frozen,
    Dead,
    Stopped,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
enum Phase {
    Taken,
    Calling,
    /// Answered; the end is to be sent.
    Answered,
    /// The end was sent.
    Ending,
}

/// An attempt in the memory of a process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
struct Attempt {
    fence: Fence,
    delivery: u8,
    phase: Phase,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Process {
    id: usize,
    condition: Condition,
    stopping: bool,
    attempts: [Option<Attempt>; LANES],
    /// Waits for the result of a take, or of freeing what is not in its memory.
    waits: bool,
}

/// A statement between its begin and its execution.
#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
struct Statement {
    process: usize,
    id: usize,
    lane: usize,
    awaited: bool,
    kind: StatementKind,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
enum StatementKind {
    /// Takes the head of a lane with this slot, both seen free.
    Take { slot: usize },
    /// What a take took, on its way to the process.
    Taken(Option<Attempt>),
    /// Ends an attempt of a delivery; `more` was seen behind the head, if the end looks there (a mutation).
    End { fence: Fence, delivery: u8, more: bool },
    /// Frees a lane that names the process and is not in its memory.
    Free { fence: Fence },
    /// Enqueues a delivery by a lane that was read before (a mutation).
    Enqueue { delivery: u8, seen: Lane },
}

/// What the promises are judged by.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Evidence {
    /// Calls of each delivery.
    called: [u8; 3],
    /// Deliveries by their first call, and by their replies.
    first_calls: Vec<u8>,
    replies: Vec<u8>,
    /// Faults that excuse a repeated call.
    excuses: u8,
    /// An end hit another delivery than the one that was called, or a lane that another process had taken.
    stray_end: bool,
    /// A lane was freed though the process that ran it was alive and had it in memory.
    freed_alive: bool,
}

/// The state of the model.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    lanes: [Lane; LANES],
    /// The lane and the process that hold each slot.
    slots: [Option<(usize, usize)>; 2],
    workers: [WorkerRow; IDS],
    processes: [Process; 2],
    statements: Vec<Statement>,
    /// How many deliveries intake has enqueued.
    enqueued: usize,
    /// Processes are alike: process 0 takes first.
    is_begun: bool,
    left: Faults,
    seen: Evidence,
}

impl Dispatch {
    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == mutation
    }
}

fn lane_of(delivery: u8) -> usize {
    usize::from(delivery == 2)
}

impl Lane {
    fn is_empty(&self) -> bool {
        self.head > self.tail
    }

    /// Whether its head waits.
    fn is_takeable(&self) -> bool {
        self.worker.is_none() && self.is_due && !self.is_empty()
    }

    fn head_delivery(&self) -> Option<u8> {
        self.rows.get(usize::from(self.head) - 1).copied().flatten()
    }
}
