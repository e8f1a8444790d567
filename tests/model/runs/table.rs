//! Promises and mutations of runs, with the test of each mutation.

use super::{Faults, Runs};
use crate::checked::{QUIESCENT, assert_holds, mutations};

pub const SHOWN_ONCE: &str = "a part of an answer is shown once";
pub const STORED_FIRST: &str = "a part is stored before it is shown";
pub const COMPLETE: &str = "an answer that has ended is shown completely";
pub const NO_STRAY_WRITE: &str = "a process without the lane does not write the run";
pub const STOPPED_SHOWS_NOTHING: &str = "a run that begins after its stop shows nothing";
pub const NEWER_NOT_STOPPED: &str = "a stop does not end a newer run";

mutations! { runs;
    /// 3.3 "`run_events` (run, seq; written *before* Slack)".
    SentBeforeStored, sent_before_stored => STORED_FIRST;
    /// 3.3 "Append ambiguous: don't repeat".
    AmbiguousPartRepeated, ambiguous_part_repeated => SHOWN_ONCE;
    /// 3.3 "compare its `message` with the log".
    AmbiguousPartTakenForSent, ambiguous_part_taken_for_sent => COMPLETE;
    /// 3.3 "Start ambiguous: look in the gateway's log".
    BeginRepeatedWithoutLookUp, begin_repeated_without_look_up => SHOWN_ONCE;
    /// 3.3 "none in 5 s → start anew": not before the call must be over.
    LookedUpBeforeCallIsOver, looked_up_before_run_call_is_over => SHOWN_ONCE;
    /// 3.3 "Re-ask: same run, `Last-Event-ID`".
    AskedFromStart, asked_from_start => SHOWN_ONCE;
    /// 3.3 "The agent goes on after it": the id is stored with the part, not before it.
    IdStoredBeforePart, id_stored_before_part => COMPLETE;
    /// 3.3 "A running lane names its worker": the fence of a write.
    WriteWithoutFence, run_write_without_fence => NO_STRAY_WRITE;
    /// 3.3 "A worker that can't renew ends its calls to agents and Slack before that".
    CallsAfterTakeover, calls_after_takeover => SHOWN_ONCE;
    /// 3.4 "run known or not".
    StopOfUnknownRunDropped, stop_of_unknown_run_dropped => STOPPED_SHOWS_NOTHING;
    /// 3.4 "the row is the truth": a run asks for it after it has registered.
    ControlsAskedBeforeRegistration, controls_asked_before_registration => QUIESCENT;
    /// 3.4 "the row is the truth, read at each renewal": also by a run of another worker.
    NextWorkerIgnoresStop, next_worker_ignores_stop => QUIESCENT;
    /// 1.3 "it hits only runs whose trigger is older than `event_ts`".
    StopHitsNewerRun, stop_hits_newer_run => NEWER_NOT_STOPPED;
}

fn runs(mutation: Mutation) -> Runs {
    let faults = match mutation {
        Mutation::LookedUpBeforeCallIsOver
        | Mutation::BeginRepeatedWithoutLookUp
        | Mutation::AmbiguousPartRepeated => {
            Faults { lost_answers: 1, crashes: 1, ..Faults::default() }
        }
        Mutation::AmbiguousPartTakenForSent => Faults { lost_requests: 1, ..Faults::default() },
        Mutation::WriteWithoutFence | Mutation::CallsAfterTakeover => {
            Faults { freezes: 1, ..Faults::default() }
        }
        _ => Faults { crashes: 1, ..Faults::default() },
    };
    let has_stop = matches!(
        mutation,
        Mutation::StopOfUnknownRunDropped
            | Mutation::ControlsAskedBeforeRegistration
            | Mutation::NextWorkerIgnoresStop
            | Mutation::StopHitsNewerRun
    );
    let hangs = matches!(
        mutation,
        Mutation::ControlsAskedBeforeRegistration | Mutation::NextWorkerIgnoresStop
    );
    Runs { mutation, faults, has_stop, hangs }
}

fn holds(faults: &Faults, has_stop: bool, hangs: bool) {
    assert_holds(|| Runs { mutation: Mutation::None, faults: faults.clone(), has_stop, hangs });
}

#[test]
fn holds_with_crashes_and_freeze() {
    holds(&Faults { crashes: 2, freezes: 1, ..Faults::default() }, false, false);
}

#[test]
fn holds_with_lost_calls_and_crash() {
    holds(
        &Faults { crashes: 1, lost_answers: 1, lost_requests: 1, ..Faults::default() },
        false,
        false,
    );
}

#[test]
fn holds_with_stop() {
    for hangs in [false, true] {
        holds(
            &Faults { crashes: 1, freezes: 1, lost_answers: 1, ..Faults::default() },
            true,
            hangs,
        );
    }
}
