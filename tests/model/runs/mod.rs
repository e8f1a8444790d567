//! Runs (AGENT-TURN.md 3.3, 3.4): answers that agents stream, in parts that are durable before Slack gets them, and
//! stops.
//!
//! One question whose agent sends parts 0 and 1 and then ends, two processes, and a second question of the same
//! conversation, which is newer than the stop. A segment begins with a part (`chat.startStream`), gets another one
//! (`chat.appendStream`) and is ended. A request to Slack may arrive, or be lost, at any time after it was sent, and
//! so may its answer.

mod protocol;
mod table;

pub use table::MUTATIONS;

use table::Mutation;

/// Parts of the answer.
const PARTS: u8 = 2;

/// Runs of one conversation.
struct Runs {
    mutation: Mutation,
    faults: Faults,
    /// A person stops the agent.
    has_stop: bool,
    /// The agent sends nothing after its first part, until it is cancelled.
    hangs: bool,
}

/// Faults that may still happen.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Faults {
    crashes: u8,
    /// Processes that do nothing until their lane was freed.
    freezes: u8,
    /// Answers of Slack that do not arrive.
    lost_answers: u8,
    /// Requests that do not arrive.
    lost_requests: u8,
}

/// The segment as the row of the run has it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Segment {
    #[default]
    None,
    /// Slack may have its first part.
    Starting,
    Open,
}

/// The row of the run, with its parts.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Row {
    /// Parts that are stored, by the event that brought them.
    parts: Vec<u8>,
    /// Events of the agent up to the last one that the row names.
    events: u8,
    /// Parts that Slack confirmed.
    sent: u8,
    segment: Segment,
    has_ended: bool,
    is_stopped: bool,
}

/// A message in Slack: the parts that it shows.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Message {
    parts: Vec<u8>,
    is_open: bool,
}

/// What a process does next.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Phase {
    /// Looks for controls before it registers (a mutation), and found none.
    Checked,
    /// Registered; asks for its controls.
    Registered,
    /// Looks for the message of a segment whose begin is ambiguous.
    LookUp,
    /// Ends a segment that is ambiguous, and makes it whole.
    Settle,
    Idle,
    /// Waits for Slack.
    Waiting,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Process {
    claim: u8,
    phase: Phase,
    row: Row,
    /// Events that the agent sent to this process and that are not stored.
    pending: u8,
    is_registered: bool,
    is_cancelled: bool,
    is_frozen: bool,
}

/// A request on its way to Slack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Request {
    process: usize,
    /// Place in the list of parts.
    at: u8,
    part: u8,
    /// Message that gets the part, `None` if it begins one.
    message: Option<usize>,
    awaited: bool,
}

/// What the promises are judged by.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Evidence {
    /// A part was shown that was not stored.
    shown_unstored: bool,
    /// A process that had lost the lane wrote the row.
    stray_write: bool,
    /// The stop was committed before the run began.
    stopped_before: bool,
    /// The newer question was stopped.
    newer_stopped: bool,
    newer_done: bool,
}

/// The state of the model.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    row: Row,
    has_row: bool,
    /// The claim that holds the lane, `None` if it is free, and the number of claims.
    claim: Option<u8>,
    claims: u8,
    is_done: bool,
    /// The stop is committed.
    is_stopped: bool,
    processes: [Option<Process>; 2],
    messages: Vec<Message>,
    requests: Vec<Request>,
    left: Faults,
    seen: Evidence,
}

impl Runs {
    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == mutation
    }
}
