//! Model of the outbox (design 5.3): sends with a mark before the call, ambiguity, reconciling,
//! intervals between sends, and Slack's limits.
//!
//! There are two lanes of one channel and two processes, each with one send at a time. A request
//! reaches Slack at any time until its lane's `sending_until`; in the model that time passes only
//! after the request has arrived. Freeing the lanes of an expired worker is one step here; the
//! `dispatch` model has its parts.

mod protocol;
mod sending;
mod table;

pub use table::MUTATIONS;

use table::Mutation;

const LANES: usize = 2;
const MESSAGES: usize = 3;

/// An outbox with messages 0 and 1 in lane 0, and message 2, which Slack rejects, in lane 1.
struct Outbox {
    mutation: Mutation,
    faults: Faults,
}

/// Faults that may still happen.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Faults {
    crashes: u8,
    freezes: u8,
    /// Answers of Slack that do not arrive.
    lost_answers: u8,
    /// Statements whose result does not arrive. They may be executed later.
    lost_results: u8,
    /// Calls that Slack answers with 429.
    limits: u8,
    /// Look-ups without a clear answer.
    unclear: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Fence {
    id: usize,
    head: u8,
    attempts: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Lane {
    head: u8,
    tail: u8,
    /// Position in the channel: the lowest is taken first.
    turn: u8,
    worker: Option<usize>,
    attempts: u8,
    /// True if a call may be running, or may have been running when its process ended.
    is_marked: bool,
    is_ambiguous: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Outcome {
    Sent,
    /// Slack rejected the message.
    Failed,
    /// Not sent.
    Later,
    /// Possibly sent.
    Ambiguous,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Phase {
    LookUp,
    Call,
    Calling,
    Record(Outcome),
    Recording(Outcome),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Attempt {
    lane: usize,
    fence: Fence,
    message: u8,
    was_ambiguous: bool,
    phase: Phase,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Condition {
    Up,
    Frozen,
    /// Frozen for longer than the TTL, so that its lanes were freed.
    Expired,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Process {
    id: usize,
    condition: Condition,
    attempt: Option<Attempt>,
}

/// A request on its way to Slack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Request {
    process: usize,
    lane: usize,
    message: u8,
    awaited: bool,
}

/// The statement that records an outcome, on its way to Postgres.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Record {
    process: usize,
    lane: usize,
    fence: Fence,
    message: u8,
    outcome: Outcome,
    awaited: bool,
}

/// Evidence for the promises.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Evidence {
    /// Messages in the order in which Slack posted them.
    posts: Vec<u8>,
    /// Messages recorded as sent, recorded as failed, and failed with a notice to a person.
    sent: Vec<u8>,
    failed: Vec<u8>,
    notified: Vec<u8>,
    /// Number of takes since the interval last allowed one.
    takes: u8,
    called_while_blocked: bool,
    passed_over: bool,
    stray_record: bool,
}

/// The state of the model.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    lanes: [Lane; LANES],
    next_turn: u8,
    /// True if the interval of the channel allows a message.
    is_paced: bool,
    /// True until Slack's Retry-After is over.
    is_blocked: bool,
    processes: [Process; 2],
    requests: Vec<Request>,
    records: Vec<Record>,
    left: Faults,
    seen: Evidence,
}

impl Outbox {
    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == mutation
    }
}

fn message_at(lane: usize, position: u8) -> u8 {
    if lane == 1 { 2 } else { position - 1 }
}

fn fence_of(lane: &Lane) -> Option<Fence> {
    lane.worker.map(|id| Fence { id, head: lane.head, attempts: lane.attempts })
}
