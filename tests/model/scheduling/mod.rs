//! Model of scheduling (design 5.2, and promises 1, 4 and 7 of section 2): queues, shares,
//! priority, circuit breaker, budgets, deliveries that fail.
//!
//! There is one agent with two slots and one more slot for interactive deliveries. Connection 0 has
//! more deliveries than the agent can run; connection 1 has one. A take is a single step here; the
//! `dispatch` model has its parts.

mod protocol;
mod table;

pub use table::MUTATIONS;

use table::Mutation;

const CONNECTIONS: usize = 2;
/// Number of slots for all deliveries. One more slot is for interactive deliveries.
const SLOTS: usize = 2;
/// Maximum number of these slots for one connection while others wait.
const SHARE: usize = 1;
/// Number of refusals by the agent after which a delivery is given up.
const REFUSALS: u8 = 3;

/// Takes of one worker.
struct Scheduling {
    mutation: Mutation,
    /// Number of deliveries that wait at the start: background deliveries of each connection, and
    /// interactive deliveries of connection 0.
    background: [u8; CONNECTIONS],
    interactive: u8,
    /// Maximum number of bodies that the worker may hold in memory.
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
    /// Stops of connection 0, which is then started again.
    stops: u8,
    /// Times that the circuit of the agent opens.
    openings: u8,
}

/// A delivery that runs or waits for another attempt.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Delivery {
    connection: usize,
    is_interactive: bool,
    refusals: u8,
}

/// Evidence for the promises.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
struct Evidence {
    /// Number of takes of other deliveries since connection 1 began to wait while it may use a
    /// slot.
    passed_over: u8,
    share_exceeded: bool,
    background_first: bool,
    called_stopped: bool,
    called_open: bool,
    /// Number of probes since the circuit opened.
    probes: u8,
    dead: u8,
    /// True if a delivery was given up before [`REFUSALS`].
    dead_early: bool,
    notified: u8,
}

/// The state of the model.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct State {
    background: [u8; CONNECTIONS],
    interactive: u8,
    /// Deliveries that failed and wait for another attempt.
    again: Vec<Delivery>,
    running: Vec<Delivery>,
    /// Number of bodies in memory.
    bodies: usize,
    /// Queue that was visited last.
    visited: usize,
    is_stopped: bool,
    is_open: bool,
    /// Number of workers that found the probe due.
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
