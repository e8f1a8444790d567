//! Model of stream resets (design 5.4): a stream that is lost, truncated or restored, and a
//! Postgres that is restored.
//!
//! There is one reader of one partition; the `intake` model has ownership. Webhooks are published
//! one after another, each at a server time; two have the same time. Promises cover only messages
//! that the stream has, not those that it lost before they were committed.

mod protocol;
mod reader;
mod table;

pub use table::MUTATIONS;

use table::Mutation;

/// Server times of webhooks 0 to 3. Two are equal.
const TIMES: [u8; 4] = [1, 2, 2, 4];
/// Time for which keys are kept after `read_through`, copies of a webhook may arrive, and purges
/// spare messages.
const DAY: u8 = 2;

/// A partition of a stream that may be replaced.
struct StreamReset {
    mutation: Mutation,
    faults: Faults,
}

/// Faults that may still happen.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Faults {
    /// Recreations of the stream, empty or with its messages.
    recreations: u8,
    /// Truncations: the stream loses its last messages, as if an older copy had been restored.
    cuts: u8,
    /// Restores of Postgres from a backup.
    restores: u8,
    /// Copies of a webhook that arrive after the dedup window of the stream.
    copies: u8,
    /// Commits that are executed a second time, later.
    late_commits: u8,
    /// Times that the reader opens the stream again.
    reopenings: u8,
    purges: u8,
    /// Deletions of the message at the remembered sequence by an operator.
    deletions: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Message {
    webhook: u8,
    time: u8,
}

/// The stream: messages from sequence 1 on, `None` for a purged message.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Stream {
    created: u8,
    messages: Vec<Option<Message>>,
}

/// The last committed message of this partition. After a reset its sequence is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Last {
    sequence: Option<u8>,
    webhook: u8,
    time: u8,
}

/// The rows in Postgres.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Rows {
    generation: u8,
    created: Option<u8>,
    cursor: u8,
    last: Option<Last>,
    read_through: u8,
    keys: u8,
    /// Number of times that the effects of each webhook took place. A restore of Postgres restores
    /// them.
    effects: [u8; 4],
    /// Number of recorded purges.
    recorded: u8,
}

/// A commit of one message.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Commit {
    generation: u8,
    from: u8,
    to: u8,
    message: Message,
}

/// The state of the model.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    stream: Stream,
    rows: Rows,
    backup: Option<Rows>,
    is_open: bool,
    /// Number of published webhooks, and the time of the server.
    published: u8,
    clock: u8,
    late: Option<Commit>,
    left: Faults,
    /// Number of times that the stream was replaced.
    resets: u8,
    /// Number of purges.
    purged: u8,
    /// True if a message was purged that was not committed, or that a restored Postgres needs.
    needed_purged: bool,
    /// True if the remembered message was decided again.
    last_decided_again: bool,
    false_reset: bool,
}

impl StreamReset {
    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == mutation
    }
}

impl Stream {
    fn at(&self, sequence: u8) -> Option<Message> {
        let index = usize::from(sequence).checked_sub(1)?;
        self.messages.get(index).copied().flatten()
    }

    fn last_sequence(&self) -> u8 {
        self.messages.len() as u8
    }

    /// Returns the first message after a sequence.
    fn next_after(&self, cursor: u8) -> Option<(u8, Message)> {
        (cursor + 1..=self.last_sequence()).find_map(|n| Some((n, self.at(n)?)))
    }
}
