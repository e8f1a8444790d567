//! Promises and mutations of the outbox, with the test of each mutation.

use super::{Faults, Outbox};
use crate::checked::{assert_holds, mutations};

pub const POSTED_ONCE: &str = "Slack gets a message once";
pub const NOTHING_DROPPED: &str = "a message recorded as sent was sent";
pub const IN_ORDER: &str = "messages of a lane keep the order";
pub const PACED: &str = "one message is taken per interval of a channel";
pub const NOT_BLOCKED: &str = "Slack is not called while it asks to wait";
pub const LOWEST_FIRST: &str = "the head with the lowest turn is taken first";
pub const ATTEMPTS_BOUND: &str = "attempts of a message are bounded";
pub const NOTIFIED: &str = "a person gets a notice of a message given up";

mutations! { outbox;
    /// 5.3 "marked with the attempt before the call".
    NotMarkedBeforeCall, not_marked_before_call => POSTED_ONCE;
    /// 5.3 "in the statement that takes"; a lane that was freed while marked is ambiguous.
    FreedMessageTakenForUnsent, freed_message_taken_for_unsent => POSTED_ONCE;
    /// 5.3 "ambiguity counted": a call without an answer may have arrived.
    LostAnswerTakenForUnsent, lost_answer_taken_for_unsent => POSTED_ONCE;
    /// 2.5 "Slack is told once wherever Slack lets one look"; 5.3 "reconciled by message metadata".
    ResentWithoutLookUp, resent_without_look_up => POSTED_ONCE;
    /// 5.3 "reconciled by message metadata": not before the call must be over.
    LookedUpBeforeCallIsOver, looked_up_before_call_is_over => POSTED_ONCE;
    /// 5.3 "whose look-up stays unclear": unclear is not absent.
    UnclearLookUpTakenForAbsent, unclear_look_up_taken_for_absent => POSTED_ONCE;
    /// 5.3 "whose look-up stays unclear": unclear is not sent.
    UnclearLookUpTakenForSent, unclear_look_up_taken_for_sent => NOTHING_DROPPED;
    /// 5.3 "running lanes owned by the worker row": the fence of a record.
    RecordWithoutFence, record_without_fence => NOTHING_DROPPED;
    /// 5.3 "with the same queue shape": a fence of (worker, attempts), without the position of the
    /// head.
    RecordFencedWithoutHead, record_fenced_without_head => NOTHING_DROPPED;
    /// 2.3 "their replies keep that order": the next message waits for the end of the head.
    NextTakenBeforeHeadEnds, next_taken_before_head_ends => IN_ORDER;
    /// 5.3 "moves the channel's `next_at` in the same update".
    PaceMovedByRecord, pace_moved_by_record => PACED;
    /// 5.3 "`outbox_channels` … carries pace and `Retry-After` per channel".
    RetryAfterIgnored, retry_after_ignored => NOT_BLOCKED;
    /// 5.3 "the due lane head with the lowest id".
    TakesAnyHead, takes_any_head => LOWEST_FIRST;
    /// 5.3 "if that is refused too, … the row is a dead letter".
    RefusalRepeated, refusal_repeated => ATTEMPTS_BOUND;
    /// 2.7 "A person who waits hears something"; 5.3 "the person gets an ephemeral note".
    RefusalNotNotified, refusal_not_notified => NOTIFIED;
}

fn outbox(mutation: Mutation) -> Outbox {
    let faults = match mutation {
        Mutation::RecordFencedWithoutHead => Faults { lost_results: 1, ..Faults::default() },
        Mutation::RetryAfterIgnored => Faults { limits: 1, ..Faults::default() },
        _ => Faults { crashes: 1, freezes: 1, lost_answers: 1, unclear: 1, ..Faults::default() },
    };
    Outbox { mutation, faults }
}

fn holds(faults: Faults) {
    assert_holds(|| Outbox { mutation: Mutation::None, faults: faults.clone() });
}

#[test]
fn holds_with_crash_and_freeze() {
    holds(Faults { crashes: 1, freezes: 1, ..Faults::default() });
}

#[test]
fn holds_with_freeze_and_lost_answer() {
    holds(Faults { freezes: 1, lost_answers: 1, unclear: 1, ..Faults::default() });
}

#[test]
fn holds_with_lost_results_and_limit() {
    holds(Faults { lost_results: 2, limits: 1, ..Faults::default() });
}
