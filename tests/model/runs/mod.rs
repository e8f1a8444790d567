//! Model of runs (design of agent turns, 3.3 and 3.4): streamed answers, whose parts are stored
//! before Slack gets them, and stops.
//!
//! There are two processes, one question, whose agent sends parts 0 and 1 and then ends, and a
//! second question of the same conversation, which is newer than the stop. A segment starts with a
//! part (`chat.startStream`), gets another part (`chat.appendStream`) and is ended. A request to
//! Slack may arrive or be lost at any time after it was sent, and so may its answer.

mod protocol;
mod table;

pub use table::MUTATIONS;

use table::Mutation;

/// Number of parts of the answer.
const PARTS: u8 = 2;

/// Runs of one conversation.
struct Runs {
    mutation: Mutation,
    faults: Faults,
    /// True if a person stops the run.
    has_stop: bool,
    /// True if the agent sends nothing after its first part until it is cancelled.
    hangs: bool,
}

/// Faults that may still happen.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Faults {
    crashes: u8,
    /// Processes that do nothing until their lane is freed.
    freezes: u8,
    /// Answers of Slack that do not arrive.
    lost_answers: u8,
    /// Requests that do not arrive.
    lost_requests: u8,
}

/// State of the segment in the row of the run.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
enum Segment {
    #[default]
    None,
    /// Slack may have the first part of the segment.
    Starting,
    Open,
}

/// The row of the run, with its parts.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Row {
    /// Stored parts, by the number of their event.
    parts: Vec<u8>,
    /// Number of events of the agent up to the last one in the row.
    events: u8,
    /// Number of parts that Slack confirmed.
    sent: u8,
    segment: Segment,
    has_ended: bool,
    is_stopped: bool,
}

/// A message in Slack with the parts that it shows.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Message {
    parts: Vec<u8>,
    is_open: bool,
}

/// Next action of a process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Phase {
    /// Read the run controls before registering (used by a mutation).
    Checked,
    /// Registered. Reads its run controls next.
    Registered,
    /// Looks up the message of a segment whose start is ambiguous.
    LookUp,
    /// Ends an ambiguous segment and completes its message.
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
    /// Number of events that the agent sent to this process and that are not stored.
    pending: u8,
    is_registered: bool,
    is_cancelled: bool,
    is_frozen: bool,
}

/// A request on its way to Slack.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Request {
    process: usize,
    /// Index in the list of parts.
    at: u8,
    part: u8,
    /// Message that gets the part. `None` if the request starts a message.
    message: Option<usize>,
    awaited: bool,
}

/// Evidence for the promises.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Evidence {
    /// True if a part was shown that was not stored.
    shown_unstored: bool,
    /// True if a process that had lost the lane wrote the row.
    stray_write: bool,
    /// True if the stop was committed before the run began.
    stopped_before: bool,
    /// True if the newer question was stopped.
    newer_stopped: bool,
    newer_done: bool,
}

/// The state of the model.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    row: Row,
    has_row: bool,
    /// Claim that holds the lane (`None` if it is free), and the number of claims.
    claim: Option<u8>,
    claims: u8,
    is_done: bool,
    /// True if the stop is committed.
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
