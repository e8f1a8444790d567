//! Intake of one partition (DESIGN.md 5.1): leases, epochs, batches, commits, duplicate copies, webhooks that end a
//! process.
//!
//! Two workers. A statement that was sent is executed at any later time, also after its worker stopped waiting for
//! it, crashed or lost the partition. Freezing needs no step of its own: any worker may do nothing for any time, and
//! its lease may run out meanwhile.

mod commit;
mod protocol;
mod table;
mod worker;

pub use table::MUTATIONS;

use table::Mutation;

/// Webhooks in the stream, at most.
const WEBHOOKS: usize = 5;
/// Webhooks of a batch, at most.
const BATCH: u8 = 2;

/// The kind of a webhook, as far as it matters for the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
enum Kind {
    /// Has no effect.
    Ignored,
    /// Becomes a delivery.
    Delivery,
    /// Changes a binding, which later webhooks must see.
    Link,
    /// Postgres refuses its contents.
    Refused,
    /// Ends the process that decides it.
    Crashes,
    /// Needs a row that this release can't read.
    Unreadable,
    /// Written by a newer release than worker 0's.
    Newer,
}

/// A webhook in the stream; copies have the same key.
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
    /// Leases that run out though their owner lives: it was frozen or cut off.
    expiries: u8,
    /// Statements whose result does not arrive.
    lost_results: u8,
    /// Readers that end while the process lives.
    reader_ends: u8,
}

/// What becomes of a webhook.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Decision {
    Ignore,
    /// Effects, decided with or without the binding.
    Apply {
        bound: bool,
    },
    DeadLetter,
}

/// Decided webhooks `first..=to`; the cursor is expected at `from`.
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
    /// The worker waits for the result.
    awaited: bool,
}

/// A claim of the partition. The number counts claims; it is the epoch, unless a mutation spoils that.
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
    /// Webhooks of the next batch, at most.
    limit: u8,
    /// The batch was refused once and prepared anew.
    prepared_anew: bool,
    /// Webhooks are decided one by one, each marked before.
    alone: bool,
    /// It found a webhook of a newer release and claims no more.
    declines: bool,
    /// A lease that is renewed though its reader ended (a mutation).
    zombie: Option<u8>,
    /// The binding as known when the partition was claimed (used by a mutation).
    cached_bound: bool,
    /// The batch after the one that was sent (a mutation).
    ahead: Option<Batch>,
}

/// The rows of the partition in Postgres.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Rows {
    epoch: u8,
    cursor: u8,
    /// The number of the claim whose lease has not run out.
    lease: Option<u8>,
    /// Claims since the cursor moved.
    claims: u8,
    /// The webhook that is decided alone, and how often it was marked.
    suspect: Option<(u8, u8)>,
    keys: u8,
    bound: bool,
}

/// What the promises are judged by.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Evidence {
    /// Claims so far.
    claims: u8,
    /// How often each webhook was decided, and how often the effects of each key took place.
    decided: [u8; WEBHOOKS],
    effects: [u8; WEBHOOKS],
    delivered: Vec<u8>,
    /// A process wrote after its partition was claimed by another.
    stale_write: bool,
    /// A delivery was decided without the binding of a link before it.
    binding_missed: bool,
    /// A webhook that is not at fault became a dead letter.
    innocent_dead: bool,
    /// The old release decided a webhook of the newer one.
    newer_decided: bool,
    /// How often a webhook ended a process.
    ended_process: u8,
    /// How often the old release gave the partition back.
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
