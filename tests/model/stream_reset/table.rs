//! Promises and mutations of stream resets, with the test of each mutation.

use super::{Faults, StreamReset};
use crate::checked::{QUIESCENT, assert_holds, mutations};

pub const EFFECTS_ONCE: &str = "effects take place once in all streams";
pub const NOTHING_SKIPPED: &str = "the cursor passes no message of the stream without a decision";
pub const NOT_AGAIN: &str = "the remembered message is not decided again";
pub const NO_FALSE_RESET: &str = "the generation is raised only if the stream was replaced";
pub const NOT_NEEDED: &str = "no message is purged that is still needed";
pub const RECORDED: &str = "a purge is recorded before it happens";

mutations! { stream_reset;
    /// 5.4 "Another message there … the stream is another".
    MessageNotCompared, message_not_compared => NOTHING_SKIPPED;
    /// 5.4 "the key and server time of the last own message": as it stands only the key is
    /// compared, and a copy of the same webhook may stand there.
    TimeNotCompared, time_not_compared => NOTHING_SKIPPED;
    /// 5.4 "a changed `created`".
    CreationNotCompared, creation_not_compared => NOTHING_SKIPPED;
    /// 5.4 "or a last sequence below the cursor".
    LastSequenceNotCompared, last_sequence_not_compared => NOTHING_SKIPPED;
    /// 5.4 "*no message there* proves nothing".
    MissingMessageTakenForReset, missing_message_taken_for_reset => NO_FALSE_RESET;
    /// 5.4 "At every opening".
    CheckedAtFirstOpeningOnly, checked_at_first_opening_only => QUIESCENT;
    /// 5.4 "reading from the cursor's server time".
    ResetKeepsCursor, reset_keeps_cursor => NOTHING_SKIPPED;
    /// 5.4 "reading from the cursor's server time": not from the start, where keys are gone.
    ResetReadsFromStart, reset_reads_from_start => EFFECTS_ONCE;
    /// 5.4 "reading from the cursor's server time": messages of the same time are not committed
    /// yet.
    ReadsBehindTime, reads_behind_time => NOTHING_SKIPPED;
    /// 5.4 "Server times only".
    ReadsFromOwnClock, reads_from_own_clock => NOTHING_SKIPPED;
    /// 5.4 "`processed_keys` keeps effects single".
    ResetForgetsKeys, reset_forgets_keys => EFFECTS_ONCE;
    /// 5.4 "is skipped if its key is the remembered one".
    RememberedMessageNotSkipped, remembered_message_not_skipped => NOT_AGAIN;
    /// 5.4 "With each cursor stand the key and server time of the last own message": also before
    /// the first commit after a reset, when nothing in the stream recognizes it.
    CursorKeptUntilFirstCommit, cursor_kept_until_first_commit => NOTHING_SKIPPED;
    /// 5.4 "generation + 1".
    GenerationKept, generation_kept => NOTHING_SKIPPED;
    /// 5.1 "where … generation = $g".
    CommitWithoutGeneration, commit_without_generation => NOTHING_SKIPPED;
    /// 5.4 "purges its subjects up to its own cursor".
    PurgesPastCursor, purges_past_cursor => NOT_NEEDED;
    /// 5.4 "sparing the last own message".
    LastMessagePurged, last_message_purged => NOT_NEEDED;
    /// 5.4 "and the last 24 h (a restored Postgres re-reads them)"; "only above 85 % … less is
    /// spared".
    DayNotSpared, day_not_spared => NOT_NEEDED;
    /// 5.1 "subtracted by the rows they write before they act".
    PurgeRecordedAfterwards, purge_recorded_afterwards => RECORDED;
    /// 5.1 "truncated 48 h after every partition's `read_through`".
    KeysTruncatedByClock, keys_truncated_by_clock => EFFECTS_ONCE;
    /// 5.4 "idle owners advance `read_through`": only when nothing is unread.
    ReadThroughAdvancedWhileBehind, read_through_advanced_while_behind => EFFECTS_ONCE;
}

fn stream_reset(mutation: Mutation) -> StreamReset {
    use Mutation::*;
    let none = Faults::default();
    let faults = match mutation {
        CreationNotCompared => Faults { recreations: 1, deletions: 1, ..none },
        ReadsBehindTime | ReadsFromOwnClock => Faults { recreations: 1, copies: 1, ..none },
        MissingMessageTakenForReset => Faults { deletions: 1, reopenings: 1, ..none },
        LastMessagePurged => Faults { purges: 2, reopenings: 1, ..none },
        CursorKeptUntilFirstCommit => Faults { cuts: 2, reopenings: 1, ..none },
        GenerationKept | CommitWithoutGeneration => Faults { cuts: 1, late_commits: 1, ..none },
        PurgesPastCursor | PurgeRecordedAfterwards => Faults { purges: 1, ..none },
        DayNotSpared => Faults { purges: 2, restores: 1, ..none },
        KeysTruncatedByClock | ReadThroughAdvancedWhileBehind => Faults { copies: 1, ..none },
        _ => Faults { cuts: 1, copies: 1, reopenings: 1, ..none },
    };
    StreamReset { mutation, faults }
}

fn holds(faults: Faults) {
    assert_holds(|| StreamReset { mutation: Mutation::None, faults: faults.clone() });
}

#[test]
fn holds_when_truncated() {
    holds(Faults { cuts: 1, copies: 1, reopenings: 1, late_commits: 1, ..Faults::default() });
}

#[test]
fn holds_when_truncated_twice() {
    holds(Faults { cuts: 2, reopenings: 1, ..Faults::default() });
}

#[test]
fn holds_when_recreated() {
    holds(Faults { recreations: 1, copies: 1, late_commits: 1, purges: 1, ..Faults::default() });
}

#[test]
fn holds_when_postgres_is_restored() {
    holds(Faults { cuts: 1, restores: 1, purges: 1, ..Faults::default() });
}

#[test]
fn holds_when_messages_are_deleted() {
    holds(Faults { deletions: 1, purges: 1, reopenings: 1, cuts: 1, ..Faults::default() });
}
