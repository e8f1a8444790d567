//! A stream that is lost, cut short or restored, and a Postgres that is restored (DESIGN.md 5.4).
//!
//! One reader of one partition; ownership is the `intake` model's. Webhooks are published one after another, each at
//! a server time; two have the same time. A message that the stream lost before it was committed is nobody's promise:
//! judged is what the stream has.

mod protocol;
mod reader;
mod table;

pub use table::MUTATIONS;

use table::Mutation;

/// Server times of the webhooks 0 to 3: two have the same.
const TIMES: [u8; 4] = [1, 2, 2, 4];
/// How long keys are kept after `read_through`, how long copies of a webhook may come, and how long purges spare
/// messages.
const DAY: u8 = 2;

/// A partition of a stream that may become another one.
struct StreamReset {
    mutation: Mutation,
    faults: Faults,
}

/// Faults that may still happen.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Faults {
    /// The stream is created anew, empty or as it was.
    recreations: u8,
    /// The stream loses its last messages; then it is as if an older copy had been restored.
    cuts: u8,
    /// Postgres is restored from a backup.
    restores: u8,
    /// Copies of a webhook that come after the stream's own window.
    copies: u8,
    /// Commits that are executed once more, late.
    late_commits: u8,
    /// Readers that open the stream again.
    reopenings: u8,
    purges: u8,
    /// Messages at the remembered sequence that an operator deletes.
    deletions: u8,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Message {
    webhook: u8,
    time: u8,
}

/// The stream: messages from sequence 1 on, `None` where one was purged.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Stream {
    created: u8,
    messages: Vec<Option<Message>>,
}

/// The last own message that was committed. After a reset its sequence in the stream is unknown.
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
    /// How often the effects of each webhook took place. Part of what is restored.
    effects: [u8; 4],
    /// Purges that were recorded.
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
    /// Webhooks published so far, and the server's time.
    published: u8,
    clock: u8,
    late: Option<Commit>,
    left: Faults,
    /// The stream became another one since the generation was raised.
    resets: u8,
    /// Purges that took place.
    purged: u8,
    /// A message was purged that was not committed, or that a restored Postgres needs.
    needed_purged: bool,
    /// The remembered message was decided again.
    last_decided_again: bool,
    false_alarm: bool,
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

    /// Returns the first message behind a sequence.
    fn next_after(&self, cursor: u8) -> Option<(u8, Message)> {
        (cursor + 1..=self.last_sequence()).find_map(|n| Some((n, self.at(n)?)))
    }
}
