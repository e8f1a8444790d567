//! Promises and mutations of scheduling, with the test of each mutation.

use super::{Faults, Scheduling};
use crate::checked::{assert_holds, mutations};

pub const IN_TURN: &str = "a queue that may run is passed over at most once";
pub const SHARED: &str = "while others wait, a connection gets at most its share";
pub const INTERACTIVE_FIRST: &str = "background deliveries leave a slot to interactive ones";
pub const MEMORY_BOUND: &str = "bodies in memory stay within the budget";
pub const STOPPED: &str = "no delivery of a stopped connection is taken";
pub const ONE_PROBE: &str = "an open circuit gets one probe at a time";
pub const DEAD_BY_REFUSAL: &str = "only refusals by the agent end a delivery early";
pub const NOTIFIED: &str = "a person gets a notice of a delivery given up";

mutations! { scheduling;
    /// 2.4 "No tenant … changes the latency of another tenant by more than a bounded share"; 5.2
    /// "beginning behind the last one visited".
    VisitsFirstQueueAlways, visits_first_queue_always => IN_TURN;
    /// 5.2 "share = a quarter of the agent's slots while others wait".
    ShareNotLimited, share_not_limited => SHARED;
    /// 5.2 "Interactive kinds … go before background ones".
    BackgroundFirst, background_first => INTERACTIVE_FIRST;
    /// 5.2 "one extra slot per agent".
    ExtraSlotForAll, extra_slot_for_all => INTERACTIVE_FIRST;
    /// 2.4 "Memory of every process is bounded"; 5.1 "taken before a pull"; 5.2 "Metadata is read
    /// first and bytes when the budget … has room".
    BodiesReadBeforeBudget, bodies_read_before_budget => MEMORY_BOUND;
    /// 5.2 "and only then reads due heads"; "Stopped or paused: its queues are not due".
    HeadsReadBeforeStatus, heads_read_before_status => STOPPED;
    /// 5.2 "the prober is who wins `update … set probe_at …`".
    ProbesWithoutMovingTime, probes_without_moving_time => ONE_PROBE;
    /// 5.2 "Terminal only when the agent says so in the protocol".
    TimeoutIsTerminal, timeout_is_terminal => DEAD_BY_REFUSAL;
    /// 2.7 "that it failed"; 5.2 "when it is given up, that it was".
    GivenUpSilently, given_up_silently => NOTIFIED;
}

fn scheduling(mutation: Mutation) -> Scheduling {
    let budget = if mutation == Mutation::BodiesReadBeforeBudget { 2 } else { 3 };
    let faults = Faults { timeouts: 1, refusals: 3, stops: 1, openings: 1 };
    Scheduling { mutation, background: [3, 1], interactive: 1, budget, faults }
}

#[test]
fn holds() {
    assert_holds(|| scheduling(Mutation::None));
}

#[test]
fn holds_with_little_memory() {
    assert_holds(|| Scheduling { budget: 2, ..scheduling(Mutation::None) });
}
