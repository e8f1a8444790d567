//! Taking in turn (DESIGN.md 5.2, and the promises 1, 4 and 7 of section 2): queues, shares, priority, circuit breaker,
//! budgets, deliveries that fail.
//!
//! One agent with two slots and one slot more for interactive deliveries. Connection 0 has more deliveries than the
//! agent can run; connection 1 has one. Takes are single steps here; the `dispatch` model has their parts.

mod protocol;
mod table;

pub use table::MUTATIONS;

use table::Mutation;

const CONNECTIONS: usize = 2;
/// Slots for all deliveries. One more is for interactive ones.
const SLOTS: usize = 2;
/// Of these, one connection has so many while others wait.
const SHARE: usize = 1;
/// Attempts of a delivery that the agent refuses.
const REFUSALS: u8 = 3;

/// Takes of one worker.
struct Scheduling {
    mutation: Mutation,
    /// Deliveries that wait at the start: background ones of each connection, and an interactive one of connection 0.
    background: [u8; CONNECTIONS],
    interactive: u8,
    /// Bodies that the worker may hold in memory.
    budget: usize,
    faults: Faults,
}

/// Faults that may still happen.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Faults {
    /// Attempts that time out.
    timeouts: u8,
    /// Attempts that the agent refuses as malformed.
    refusals: u8,
    /// Connection 0 is stopped, and started again.
    stops: u8,
    /// The agent's circuit opens.
    openings: u8,
}

/// A delivery that runs or waits for another attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Delivery {
    connection: usize,
    is_interactive: bool,
    refusals: u8,
}

/// What the promises are judged by.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Evidence {
    /// Takes that got something since connection 1 began to wait with a slot that it may have.
    passed_over: u8,
    share_exceeded: bool,
    background_first: bool,
    called_stopped: bool,
    called_open: bool,
    /// Probes since the probe time moved.
    probes: u8,
    dead: u8,
    /// A delivery was given up before the agent refused it often enough.
    dead_early: bool,
    told: u8,
}

/// The state of the model.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    background: [u8; CONNECTIONS],
    interactive: u8,
    /// Deliveries that failed and wait again.
    again: Vec<Delivery>,
    running: Vec<Delivery>,
    /// Bodies in memory.
    bodies: usize,
    /// The queue that was visited last.
    visited: usize,
    is_stopped: bool,
    is_open: bool,
    /// Workers that found the probe due.
    probing: u8,
    is_probe_due: bool,
    ended: u8,
    left: Faults,
    seen: Evidence,
}

impl Scheduling {
    fn is(&self, mutation: Mutation) -> bool {
        self.mutation == mutation
    }
}
