//! Promises and mutations of intake, with the test of each mutation.

use super::{Faults, Intake, Kind, Webhook};
use crate::checked::{ENDS, QUIESCENT, assert_holds, mutations};

pub const DECIDED_ONCE: &str = "a webhook is decided once";
pub const EFFECTS_ONCE: &str = "effects take place once";
pub const NOTHING_LOST: &str = "the cursor passes no webhook without a decision";
pub const IN_ORDER: &str = "deliveries of a lane are in stream order";
pub const FENCED: &str = "a fenced process writes nothing";
pub const BINDING_SEEN: &str = "a message after a link sees the binding";
pub const INNOCENT: &str = "only a webhook at fault becomes a dead letter";
pub const OLD_RELEASE: &str = "a newer webhook waits for a newer worker";
pub const GIVEN_BACK_ONCE: &str = "a partition given back is not claimed again";
pub const CRASHES_BOUNDED: &str = "a webhook ends a bounded number of processes";

mutations! { intake;
    /// 5.1 "update partition_cursors … where … epoch = $e".
    CommitWithoutEpoch, commit_without_epoch => FENCED;
    /// 5.1 "an epoch per claim".
    ClaimKeepsEpoch, claim_keeps_epoch => FENCED;
    /// 5.1 "update partition_cursors … where … cursor = $from".
    CommitWithoutCursor, commit_without_cursor => DECIDED_ONCE;
    /// 5.1 "every other part of the statement selects from it".
    EffectsNotFenced, effects_not_fenced => FENCED;
    /// 2.2 "its effects in Postgres and the partition's cursor are one transaction"; 5.1 "its
    /// effects first, in one transaction with the fenced statement, which comes last".
    EffectsOutsideTransaction, effects_outside_transaction => EFFECTS_ONCE;
    /// 5.1 "is written by claims and commits only; renewals write `partition_leases`".
    RenewalWritesCursor, renewal_writes_cursor => DECIDED_ONCE;
    /// 5.1 "A reader that ends for any reason gives its lease up".
    EndedReaderKeepsLease, ended_reader_keeps_lease => QUIESCENT;
    /// 5.1 "gap-checked".
    GapNotChecked, gap_not_checked => NOTHING_LOST;
    /// 5.1 "Prepare begins when the outcome of the batch before is known".
    PreparesBeforeOutcomeKnown, prepares_before_outcome_known => BINDING_SEEN;
    /// 5.1 "from Postgres and never from a cache".
    DecidesFromCache, decides_from_cache => BINDING_SEEN;
    /// 5.1 "A webhook with any other effect … is a batch of its own".
    LinkSharesBatch, link_shares_batch => BINDING_SEEN;
    /// 5.1 "one query reads … dedup keys of the batch"; "The commit inserts without `on conflict`".
    DedupOnlyWithinBatch, dedup_only_within_batch => EFFECTS_ONCE;
    /// 5.1 "keys within the batch are compared in memory"; "The commit inserts without `on
    /// conflict`".
    DedupOnlyAcrossBatches, dedup_only_across_batches => EFFECTS_ONCE;
    /// 5.1 "Every webhook but an `Ignore` has a row".
    DeadLetterWithoutKey, dead_letter_without_key => EFFECTS_ONCE;
    /// 5.1 "After an unknown result, and after a result without a row, read the cursor row".
    UnknownResultTakenForRefusal, unknown_result_taken_for_refusal => INNOCENT;
    /// 5.1 "our epoch and `$from`: send again; else the partition is lost".
    EpochNotComparedAfterUnknown, epoch_not_compared_after_unknown => ENDS;
    /// 5.1 "One webhook never stops a partition"; "then committed in halves".
    NeverHalved, never_halved => ENDS;
    /// 5.1 "down to the one webhook, which becomes a dead letter".
    RefusedWebhookSkipped, refused_webhook_skipped => NOTHING_LOST;
    /// 5.1 "From the third claim without progress".
    ClaimsNotCounted, claims_not_counted => CRASHES_BOUNDED;
    /// 5.1 "the next one to crash the process alone": the mark is written before the webhook is
    /// decided.
    MarkedAfterDeciding, marked_after_deciding => CRASHES_BOUNDED;
    /// 5.1 "webhooks are decided one by one".
    GivesUpFirstAfterThreeClaims, gives_up_first_after_three_claims => INNOCENT;
    /// 5.1 "Rows that this release can't read concern only the webhooks that need them".
    UnreadableRowFailsBatch, unreadable_row_fails_batch => QUIESCENT;
    /// 5.1 "stop before it (written by a newer release)".
    NewerSchemaDecided, newer_schema_decided => OLD_RELEASE;
    /// 5.1 "gives the partition back and claims it no more".
    ClaimsAgainAfterNewerSchema, claims_again_after_newer_schema => GIVEN_BACK_ONCE;
}

/// Returns intake with a mutation and a stream in which the mutation breaks a promise.
fn intake(mutation: Mutation) -> Intake {
    use Mutation::*;
    match mutation {
        DeadLetterWithoutKey
        | NeverHalved
        | RefusedWebhookSkipped
        | ClaimsNotCounted
        | MarkedAfterDeciding
        | UnreadableRowFailsBatch
        | NewerSchemaDecided
        | ClaimsAgainAfterNewerSchema => faulty(mutation),
        GivesUpFirstAfterThreeClaims => crashing(mutation),
        CommitWithoutCursor
        | RenewalWritesCursor
        | EndedReaderKeepsLease
        | GapNotChecked
        | UnknownResultTakenForRefusal => keyless(mutation),
        _ => copies(mutation),
    }
}

/// Returns intake of two copies of a delivery, a link and a message after the link.
fn copies(mutation: Mutation) -> Intake {
    let kinds = [(0, Kind::Delivery), (0, Kind::Delivery), (1, Kind::Link), (2, Kind::Delivery)];
    let faults = Faults { crashes: 1, expiries: 1, lost_results: 1, reader_ends: 0 };
    Intake { mutation, stream: stream(&kinds), faults }
}

/// Returns intake of a delivery between webhooks without dedup keys. Two results are lost, and a
/// reader ends.
fn keyless(mutation: Mutation) -> Intake {
    let kinds = [(0, Kind::Ignored), (1, Kind::Delivery), (2, Kind::Ignored)];
    let faults = Faults { crashes: 0, expiries: 1, lost_results: 2, reader_ends: 1 };
    Intake { mutation, stream: stream(&kinds), faults }
}

/// Returns intake of webhooks that Postgres rejects (in two copies), that crash the process, that
/// need an unreadable row, and that only a newer release can read.
fn faulty(mutation: Mutation) -> Intake {
    let kinds = [
        (0, Kind::Refused),
        (0, Kind::Refused),
        (1, Kind::Crashes),
        (2, Kind::Unreadable),
        (3, Kind::Newer),
    ];
    let faults = Faults { crashes: 0, expiries: 1, lost_results: 0, reader_ends: 0 };
    Intake { mutation, stream: stream(&kinds), faults }
}

/// Returns intake of a webhook that crashes the process, between two that do not. There is one
/// other crash: two other crashes while the process decides the same webhook alone would make it a
/// dead letter.
fn crashing(mutation: Mutation) -> Intake {
    let kinds = [(0, Kind::Delivery), (1, Kind::Crashes), (2, Kind::Delivery)];
    let faults = Faults { crashes: 1, expiries: 0, lost_results: 0, reader_ends: 0 };
    Intake { mutation, stream: stream(&kinds), faults }
}

fn stream(kinds: &[(u8, Kind)]) -> Vec<Webhook> {
    kinds.iter().map(|&(key, kind)| Webhook { key, kind }).collect()
}

#[test]
fn holds_with_copies() {
    assert_holds(|| copies(Mutation::None));
}

#[test]
fn holds_without_keys() {
    assert_holds(|| keyless(Mutation::None));
}

#[test]
fn holds_with_faulty_webhooks() {
    assert_holds(|| faulty(Mutation::None));
}

#[test]
fn holds_with_crashing_webhook() {
    assert_holds(|| crashing(Mutation::None));
}
