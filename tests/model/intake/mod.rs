//! Model of intake of one partition (design 5.1): leases, epochs, batches, commits, duplicate
//! copies, webhooks that crash a process.
//!
//! There are two workers. A statement that was sent is executed at any later time, even after its
//! worker stopped waiting for it, crashed or lost the partition. A freeze needs no step, because
//! any worker may do nothing for any time while its lease expires.

mod commit;
mod protocol;
mod table;
mod worker;

pub use table::MUTATIONS;

use table::Mutation;

/// Maximum number of webhooks in the stream.
const WEBHOOKS: usize = 5;
/// Maximum number of webhooks of a batch.
const BATCH: u8 = 2;

/// Kind of a webhook.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Kind {
    /// Has no effect.
    Ignored,
    /// Becomes a delivery.
    Delivery,
    /// Changes a binding, which later webhooks must see.
    Link,
    /// Postgres rejects its content.
    Refused,
    /// Crashes the process that decides it.
    Crashes,
    /// Needs a row that this release can't read.
    Unreadable,
    /// Written by a newer release than worker 0's.
    Newer,
}

/// A webhook in the stream. Copies have the same key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
struct Webhook {
    key: u8,
    kind: Kind,
}

/// Intake of a stream.
struct Intake {
    mutation: Mutation,
    stream: Vec<Webhook>,
    faults: Faults,
}

/// Faults that may still happen.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Faults {
    crashes: u8,
    /// Leases that expire although their owner lives, because it was frozen or disconnected.
    expiries: u8,
    /// Statements whose result does not arrive.
    lost_results: u8,
    /// Readers that end while the process lives.
    reader_ends: u8,
}

/// Decision about a webhook.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Decision {
    Ignore,
    /// Effects, decided with or without the binding.
    Apply {
        bound: bool,
    },
    DeadLetter,
}

/// Decided webhooks `first..=to`. The commit expects the cursor at `from`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Batch {
    from: u8,
    first: u8,
    to: u8,
    decisions: Vec<Decision>,
}

/// A commit on its way to Postgres.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Statement {
    worker: usize,
    claim: Claim,
    batch: Batch,
    /// True while the worker waits for the result.
    awaited: bool,
}

/// A claim of the partition. `number` counts claims and equals `epoch` unless a mutation breaks
/// that.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Claim {
    number: u8,
    epoch: u8,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Phase {
    Ready,
    Prepared(Batch),
    Sent(Batch),
    Unknown(Batch),
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Worker {
    claim: Option<Claim>,
    cursor: u8,
    phase: Phase,
    /// Maximum number of webhooks of the next batch.
    limit: u8,
    /// True if the batch was rejected once and is prepared again.
    prepared_anew: bool,
    /// True if webhooks are decided one by one, each after it was marked.
    alone: bool,
    /// True if it found a webhook of a newer release. It then stops claiming.
    declines: bool,
    /// Lease that is renewed although its reader ended (used by a mutation).
    zombie: Option<u8>,
    /// Binding at the time of the claim (used by a mutation).
    cached_bound: bool,
    /// Batch after the one that was sent (used by a mutation).
    ahead: Option<Batch>,
}

/// The rows of the partition in Postgres.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Rows {
    epoch: u8,
    cursor: u8,
    /// Number of the claim whose lease has not expired.
    lease: Option<u8>,
    /// Number of claims since the cursor moved.
    claims: u8,
    /// Webhook that is decided alone, and the number of its marks.
    suspect: Option<(u8, u8)>,
    keys: u8,
    bound: bool,
}

/// Evidence for the promises.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Evidence {
    /// Number of claims so far.
    claims: u8,
    /// Number of decisions of each webhook, and number of times that the effects of each key took
    /// place.
    decided: [u8; WEBHOOKS],
    effects: [u8; WEBHOOKS],
    delivered: Vec<u8>,
    /// True if a process wrote after another process had claimed its partition.
    stale_write: bool,
    /// True if a delivery was decided without the binding of a link before it.
    binding_missed: bool,
    /// True if a webhook that is not at fault became a dead letter.
    innocent_dead: bool,
    /// True if the old release decided a webhook of the newer release.
    newer_decided: bool,
    /// Number of times that a webhook crashed a process.
    ended_process: u8,
    /// Number of times that the old release gave the partition back.
    given_back: u8,
}

/// The state of the model.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    rows: Rows,
    workers: [Worker; 2],
    in_flight: Vec<Statement>,
    left: Faults,
    seen: Evidence,
}

impl Intake {
    fn webhook(&self, sequence: u8) -> Webhook {
        self.stream[usize::from(sequence) - 1]
    }

    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == mutation
    }

    fn is_one_release(&self) -> bool {
        self.stream.iter().all(|webhook| webhook.kind != Kind::Newer)
    }

    fn last(&self) -> u8 {
        self.stream.len() as u8
    }
}

impl Batch {
    fn webhooks(&self) -> impl Iterator<Item = (u8, Decision)> {
        (self.first..=self.to).zip(self.decisions.iter().copied())
    }
}
