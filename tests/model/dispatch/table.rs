//! Promises and mutations of dispatch, with the test of each mutation.

use super::{Dispatch, Faults};
use crate::checked::{QUIESCENT, assert_holds, mutations};

pub const REPLIES_ONCE: &str = "a delivery ends once";
pub const IN_ORDER: &str = "calls and replies of a lane keep the order";
pub const NO_STRAY_END: &str = "an end applies only to its own attempt";
pub const RUNS_ONCE: &str = "one process at a time makes calls for a lane";
pub const SLOTS_BOUND: &str = "no more attempts run than there are slots";
pub const SLOTS_AND_LANES: &str = "a running lane holds one slot";
pub const NO_NEEDLESS_CALL: &str = "without a fault no call is repeated";
pub const COMMITTED_ONLY: &str = "only committed deliveries are called";
pub const NOT_FREED_ALIVE: &str = "a lane is not freed while its process runs it";

mutations! { dispatch;
    /// 5.2 "Both use only the row's newest version and never look at other rows" (a stored head
    /// id).
    NextHeadReadFromSnapshot, next_head_read_from_snapshot => QUIESCENT;
    /// 5.2 "Both use only the row's newest version".
    EnqueueReadsSnapshot, enqueue_reads_snapshot => QUIESCENT;
    /// 5.2 "A take locks free slots `for update skip locked`"; "Limits are rows, not counts".
    SlotsCountedInSnapshot, slots_counted_in_snapshot => SLOTS_BOUND;
    /// 5.2 "the end frees its slot in the same statement".
    EndDoesNotFreeSlot, end_does_not_free_slot => SLOTS_AND_LANES;
    /// 5.2 "The fence of an end is (worker, attempts)".
    EndWithoutFence, end_without_fence => NO_STRAY_END;
    /// 5.2 "The fence of an end is (worker, attempts)": the worker.
    EndFencedWithoutWorker, end_fenced_without_worker => NO_STRAY_END;
    /// 5.2 "The fence of an end is (worker, attempts)": as it stands, without the position of the
    /// head.
    EndFencedWithoutHead, end_fenced_without_head => NO_STRAY_END;
    /// 5.2 "Running lanes and slots belong to a `workers` row".
    TakeChecksNoLiveness, take_checks_no_liveness => QUIESCENT;
    /// 5.2 "Running lanes and slots belong to a `workers` row": the take locks that row.
    TakeChecksLivenessInSnapshot, take_checks_liveness_in_snapshot => QUIESCENT;
    /// 5.2 "When it has run out, whoever notices frees its lanes": only then.
    LiveWorkerReaped, live_worker_reaped => NOT_FREED_ALIVE;
    /// 5.2 "frees its lanes and slots".
    FreedLaneKeepsSlot, freed_lane_keeps_slot => SLOTS_AND_LANES;
    /// 5.2 "frees its lanes and slots in steps": the row goes last.
    RowDeletedBeforeLanesAreFree, row_deleted_before_lanes_are_free => QUIESCENT;
    /// 5.2 "A worker that could not renew ends every call … before the TTL is over".
    CallsAfterTtl, calls_after_ttl => RUNS_ONCE;
    /// 5.2 "by its own monotonic clock": also after a freeze.
    ThawedProcessGoesOn, thawed_process_goes_on => RUNS_ONCE;
    /// 5.2 "random id per process start": an expired row is never renewed.
    ExpiredRowRenewed, expired_row_renewed => RUNS_ONCE;
    /// 5.2 "Each second a worker frees lanes that name it and are not in its memory".
    NeverFreesOwnLanes, never_frees_own_lanes => QUIESCENT;
    /// 5.2 "that name it and are not in its memory": while no take is under way.
    FreesDuringTake, frees_during_take => NOT_FREED_ALIVE;
    /// 5.2 "that name it and are not in its memory": the very attempt that was read.
    FreesWithoutAttempt, frees_without_attempt => NOT_FREED_ALIVE;
    /// 5.2 "calls that end within the grace (30 s) are not repeated".
    LanesReleasedOnStop, lanes_released_on_stop => NO_NEEDLESS_CALL;
    /// 5.2 "After its commit intake wakes the dispatcher".
    CalledBeforeCommit, called_before_commit => COMMITTED_ONLY;
}

/// Two deliveries of one lane, two deliveries of two lanes, or all three deliveries.
const ONE_LANE: &[u8] = &[0, 1];
const TWO_LANES: &[u8] = &[0, 2];
const ALL: &[u8] = &[0, 1, 2];

fn dispatch(mutation: Mutation) -> Dispatch {
    use Mutation::*;
    let none = Faults::default();
    let faults = match mutation {
        EndFencedWithoutHead | NeverFreesOwnLanes | FreesDuringTake | FreesWithoutAttempt => {
            Faults { lost_results: 2, ..none }
        }
        CallsAfterTtl => Faults { cuts: 1, ..none },
        LanesReleasedOnStop => Faults { stops: 1, ..none },
        RowDeletedBeforeLanesAreFree => Faults { crashes: 1, ..none },
        _ => Faults { freezes: 1, lost_results: 1, ..none },
    };
    let deliveries = if mutation == SlotsCountedInSnapshot { TWO_LANES } else { ONE_LANE };
    Dispatch { mutation, deliveries, slots: 1, faults }
}

fn holds(deliveries: &'static [u8], slots: usize, faults: Faults) {
    let mutation = Mutation::None;
    assert_holds(|| Dispatch { mutation, deliveries, slots, faults: faults.clone() });
}

#[test]
fn holds_with_crash_and_freeze() {
    holds(ONE_LANE, 1, Faults { crashes: 1, freezes: 1, ..Faults::default() });
}

#[test]
fn holds_with_freeze_and_lost_result() {
    holds(ONE_LANE, 1, Faults { freezes: 1, lost_results: 1, ..Faults::default() });
}

#[test]
fn holds_with_cut_and_failure() {
    holds(ONE_LANE, 1, Faults { cuts: 1, failures: 1, ..Faults::default() });
}

#[test]
fn holds_with_lost_results() {
    holds(ONE_LANE, 1, Faults { lost_results: 3, ..Faults::default() });
}

#[test]
fn holds_with_stop_and_lost_result() {
    holds(ONE_LANE, 1, Faults { stops: 1, lost_results: 1, ..Faults::default() });
}

#[test]
fn holds_with_two_lanes_of_one_slot() {
    holds(TWO_LANES, 1, Faults { freezes: 1, lost_results: 1, ..Faults::default() });
}

#[test]
fn holds_with_two_slots() {
    holds(ALL, 2, Faults { lost_results: 1, ..Faults::default() });
}
