//! Model of dispatch (design 5.2): lanes with head and tail, agent slots, workers with a TTL.
//!
//! There are two lanes of one agent and two processes. Statements run as in Postgres under `read
//! committed`: a statement reads a snapshot when it begins; conditions of its writes are re-checked
//! against the newest version of the rows that it locks. So a statement that reads rows has two
//! steps, "begin" and "execute", and any other steps may happen between them. A result may be lost;
//! then the statement may execute at any later time.

mod protocol;
mod statements;
mod table;

pub use table::MUTATIONS;

use table::Mutation;

const LANES: usize = 2;
/// Number of process ids: each of the two processes may start three times.
const IDS: usize = 6;

/// Dispatch of up to three deliveries: 0 and 1 in lane 0, 2 in lane 1.
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
    /// Processes that lose the connection to Postgres, but run.
    cuts: u8,
    lost_results: u8,
    /// Attempts that fail and are retried.
    failures: u8,
    /// Orderly stops. They do not excuse a repeated call.
    stops: u8,
}

/// Fence of an attempt: only a statement with the fence of the running attempt may end it.
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
    /// Delivery at each position, starting at position 1.
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
    /// Marked as expired by another process. No new statement may use its id.
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
    /// Answered. The end statement is not sent yet.
    Answered,
    /// The end statement was sent.
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
    /// True while it waits for the result of a take, or of freeing a lane that is not in its
    /// memory.
    waits: bool,
}

/// A statement that has begun and is not executed.
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
    /// Takes the head of a lane with a slot. The snapshot showed both as free.
    Take { slot: usize },
    /// Result of a take, on its way to the process.
    Taken(Option<Attempt>),
    /// Ends an attempt of a delivery. `more` is true if the snapshot had deliveries behind the head
    /// (used by a mutation).
    End { fence: Fence, delivery: u8, more: bool },
    /// Frees a lane that names the process and is not in its memory.
    Free { fence: Fence },
    /// Enqueues a delivery by a snapshot of the lane (used by a mutation).
    Enqueue { delivery: u8, seen: Lane },
}

/// Evidence for the promises.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Evidence {
    /// Number of calls of each delivery.
    called: [u8; 3],
    /// Deliveries in the order of their first calls, and in the order of their replies.
    first_calls: Vec<u8>,
    replies: Vec<u8>,
    /// Number of repeated calls that faults excuse.
    excuses: u8,
    /// True if an end applied to another delivery than the called one, or to a lane that another
    /// process had taken.
    stray_end: bool,
    /// True if a lane was freed although the process that ran it was alive and had it in memory.
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
    /// Number of deliveries that intake has enqueued.
    enqueued: usize,
    /// True after the first take. Process 0 takes first, because the processes are symmetric.
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

    /// Returns true if the head may be taken.
    fn is_takeable(&self) -> bool {
        self.worker.is_none() && self.is_due && !self.is_empty()
    }

    fn head_delivery(&self) -> Option<u8> {
        self.rows.get(usize::from(self.head) - 1).copied().flatten()
    }
}
