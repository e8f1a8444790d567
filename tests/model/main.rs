//! Models of the protocol of ingest and workers, and a search of all their states (crate
//! `stateright`).
//!
//! Each of the seven models has one stage with its faults: `acknowledgement` (ingest), `intake` and
//! `stream_reset` (sections 5.1 and 5.4), `dispatch` and `scheduling` (5.2), `runs` (3.3 and 3.4 of
//! the design of agent turns), `outbox` (5.3). The tests named `holds…` check that the protocol as
//! designed keeps every promise in every state and that every path ends with all work done. Each
//! mutation is a deliberate flaw, and its test checks that the search finds a broken promise: a
//! model that could not detect the flaw would prove nothing. The models use no code of the product;
//! `tests/integration` and `tests/faults` run the real processes.
//!
//! Section numbers and quotations refer to the design documents, which are not in this repository;
//! `shared/docs/ARCHITECTURE.md` describes the same mechanisms. Not modelled: sizes and durations
//! (batches, 24 h, TTLs), for which the order of events is used instead; SQL plans; contents of
//! messages; sentences whose violation costs only time.
//!
//! | Model | Sentence of the design | Mutation | Promise that finds it |
//! |---|---|---|---|
//! | acknowledgement | 2.1 "Slack hears 200 only when JetStream has confirmed the webhook" | `AnsweredBeforeConfirmed` | a webhook answered 200 is stored |
//! | acknowledgement | 2.1 "only when JetStream has confirmed": silence is no confirmation | `TimeoutAnswered200` | a webhook answered 200 is stored |
//! | acknowledgement | 4 "`Nats-Msg-Id` (dedup key …)": Slack's retries share it | `KeyOfRequest` | a webhook is stored once |
//! | acknowledgement | 4 "Over quota an event gets 503", so that Slack sends it again | `RefusalNotRepeated` | if no step is possible, all work is done |
//! | intake | 5.1 "update partition_cursors … where … epoch = $e" | `CommitWithoutEpoch` | a fenced process writes nothing |
//! | intake | 5.1 "an epoch per claim" | `ClaimKeepsEpoch` | a fenced process writes nothing |
//! | intake | 5.1 "update partition_cursors … where … cursor = $from" | `CommitWithoutCursor` | a webhook is decided once |
//! | intake | 5.1 "every other part of the statement selects from it" | `EffectsNotFenced` | a fenced process writes nothing |
//! | intake | 2.2 "its effects in Postgres and the partition's cursor are one transaction"; 5.1 "its effects first, in one transaction with the fenced statement, which comes last" | `EffectsOutsideTransaction` | effects take place once |
//! | intake | 5.1 "is written by claims and commits only; renewals write `partition_leases`" | `RenewalWritesCursor` | a webhook is decided once |
//! | intake | 5.1 "A reader that ends for any reason gives its lease up" | `EndedReaderKeepsLease` | if no step is possible, all work is done |
//! | intake | 5.1 "gap-checked" | `GapNotChecked` | the cursor passes no webhook without a decision |
//! | intake | 5.1 "Prepare begins when the outcome of the batch before is known" | `PreparesBeforeOutcomeKnown` | a message after a link sees the binding |
//! | intake | 5.1 "from Postgres and never from a cache" | `DecidesFromCache` | a message after a link sees the binding |
//! | intake | 5.1 "A webhook with any other effect … is a batch of its own" | `LinkSharesBatch` | a message after a link sees the binding |
//! | intake | 5.1 "one query reads … dedup keys of the batch"; "The commit inserts without `on conflict`" | `DedupOnlyWithinBatch` | effects take place once |
//! | intake | 5.1 "keys within the batch are compared in memory"; "The commit inserts without `on conflict`" | `DedupOnlyAcrossBatches` | effects take place once |
//! | intake | 5.1 "Every webhook but an `Ignore` has a row" | `DeadLetterWithoutKey` | effects take place once |
//! | intake | 5.1 "After an unknown result, and after a result without a row, read the cursor row" | `UnknownResultTakenForRefusal` | only a webhook at fault becomes a dead letter |
//! | intake | 5.1 "our epoch and `$from`: send again; else the partition is lost" | `EpochNotComparedAfterUnknown` | every path ends |
//! | intake | 5.1 "One webhook never stops a partition"; "then committed in halves" | `NeverHalved` | every path ends |
//! | intake | 5.1 "down to the one webhook, which becomes a dead letter" | `RefusedWebhookSkipped` | the cursor passes no webhook without a decision |
//! | intake | 5.1 "From the third claim without progress" | `ClaimsNotCounted` | a webhook ends a bounded number of processes |
//! | intake | 5.1 "the next one to crash the process alone": the mark is written before the webhook is decided | `MarkedAfterDeciding` | a webhook ends a bounded number of processes |
//! | intake | 5.1 "webhooks are decided one by one" | `GivesUpFirstAfterThreeClaims` | only a webhook at fault becomes a dead letter |
//! | intake | 5.1 "Rows that this release can't read concern only the webhooks that need them" | `UnreadableRowFailsBatch` | if no step is possible, all work is done |
//! | intake | 5.1 "stop before it (written by a newer release)" | `NewerSchemaDecided` | a newer webhook waits for a newer worker |
//! | intake | 5.1 "gives the partition back and claims it no more" | `ClaimsAgainAfterNewerSchema` | a partition given back is not claimed again |
//! | stream_reset | 5.4 "Another message there … the stream is another" | `MessageNotCompared` | the cursor passes no message of the stream without a decision |
//! | stream_reset | 5.4 "the key and server time of the last own message": as it stands only the key is compared, and a copy of the same webhook may stand there | `TimeNotCompared` | the cursor passes no message of the stream without a decision |
//! | stream_reset | 5.4 "a changed `created`" | `CreationNotCompared` | the cursor passes no message of the stream without a decision |
//! | stream_reset | 5.4 "or a last sequence below the cursor" | `LastSequenceNotCompared` | the cursor passes no message of the stream without a decision |
//! | stream_reset | 5.4 "*no message there* proves nothing" | `MissingMessageTakenForReset` | the generation is raised only if the stream was replaced |
//! | stream_reset | 5.4 "At every opening" | `CheckedAtFirstOpeningOnly` | if no step is possible, all work is done |
//! | stream_reset | 5.4 "reading from the cursor's server time" | `ResetKeepsCursor` | the cursor passes no message of the stream without a decision |
//! | stream_reset | 5.4 "reading from the cursor's server time": not from the start, where keys are gone | `ResetReadsFromStart` | effects take place once in all streams |
//! | stream_reset | 5.4 "reading from the cursor's server time": messages of the same time are not committed yet | `ReadsBehindTime` | the cursor passes no message of the stream without a decision |
//! | stream_reset | 5.4 "Server times only" | `ReadsFromOwnClock` | the cursor passes no message of the stream without a decision |
//! | stream_reset | 5.4 "`processed_keys` keeps effects single" | `ResetForgetsKeys` | effects take place once in all streams |
//! | stream_reset | 5.4 "is skipped if its key is the remembered one" | `RememberedMessageNotSkipped` | the remembered message is not decided again |
//! | stream_reset | 5.4 "With each cursor stand the key and server time of the last own message": also before the first commit after a reset, when nothing in the stream recognizes it | `CursorKeptUntilFirstCommit` | the cursor passes no message of the stream without a decision |
//! | stream_reset | 5.4 "generation + 1" | `GenerationKept` | the cursor passes no message of the stream without a decision |
//! | stream_reset | 5.1 "where … generation = $g" | `CommitWithoutGeneration` | the cursor passes no message of the stream without a decision |
//! | stream_reset | 5.4 "purges its subjects up to its own cursor" | `PurgesPastCursor` | no message is purged that is still needed |
//! | stream_reset | 5.4 "sparing the last own message" | `LastMessagePurged` | no message is purged that is still needed |
//! | stream_reset | 5.4 "and the last 24 h (a restored Postgres re-reads them)"; "only above 85 % … less is spared" | `DayNotSpared` | no message is purged that is still needed |
//! | stream_reset | 5.1 "subtracted by the rows they write before they act" | `PurgeRecordedAfterwards` | a purge is recorded before it happens |
//! | stream_reset | 5.1 "truncated 48 h after every partition's `read_through`" | `KeysTruncatedByClock` | effects take place once in all streams |
//! | stream_reset | 5.4 "idle owners advance `read_through`": only when nothing is unread | `ReadThroughAdvancedWhileBehind` | effects take place once in all streams |
//! | dispatch | 5.2 "Both use only the row's newest version and never look at other rows" (a stored head id) | `NextHeadReadFromSnapshot` | if no step is possible, all work is done |
//! | dispatch | 5.2 "Both use only the row's newest version" | `EnqueueReadsSnapshot` | if no step is possible, all work is done |
//! | dispatch | 5.2 "A take locks free slots `for update skip locked`"; "Limits are rows, not counts" | `SlotsCountedInSnapshot` | no more attempts run than there are slots |
//! | dispatch | 5.2 "the end frees its slot in the same statement" | `EndDoesNotFreeSlot` | a running lane holds one slot |
//! | dispatch | 5.2 "The fence of an end is (worker, attempts)" | `EndWithoutFence` | an end applies only to its own attempt |
//! | dispatch | 5.2 "The fence of an end is (worker, attempts)": the worker | `EndFencedWithoutWorker` | an end applies only to its own attempt |
//! | dispatch | 5.2 "The fence of an end is (worker, attempts)": as it stands, without the position of the head | `EndFencedWithoutHead` | an end applies only to its own attempt |
//! | dispatch | 5.2 "Running lanes and slots belong to a `workers` row" | `TakeChecksNoLiveness` | if no step is possible, all work is done |
//! | dispatch | 5.2 "Running lanes and slots belong to a `workers` row": the take locks that row | `TakeChecksLivenessInSnapshot` | if no step is possible, all work is done |
//! | dispatch | 5.2 "When it has run out, whoever notices frees its lanes": only then | `LiveWorkerReaped` | a lane is not freed while its process runs it |
//! | dispatch | 5.2 "frees its lanes and slots" | `FreedLaneKeepsSlot` | a running lane holds one slot |
//! | dispatch | 5.2 "frees its lanes and slots in steps": the row goes last | `RowDeletedBeforeLanesAreFree` | if no step is possible, all work is done |
//! | dispatch | 5.2 "A worker that could not renew ends every call … before the TTL is over" | `CallsAfterTtl` | one process at a time makes calls for a lane |
//! | dispatch | 5.2 "by its own monotonic clock": also after a freeze | `ThawedProcessGoesOn` | one process at a time makes calls for a lane |
//! | dispatch | 5.2 "random id per process start": an expired row is never renewed | `ExpiredRowRenewed` | one process at a time makes calls for a lane |
//! | dispatch | 5.2 "Each second a worker frees lanes that name it and are not in its memory" | `NeverFreesOwnLanes` | if no step is possible, all work is done |
//! | dispatch | 5.2 "that name it and are not in its memory": while no take is under way | `FreesDuringTake` | a lane is not freed while its process runs it |
//! | dispatch | 5.2 "that name it and are not in its memory": the very attempt that was read | `FreesWithoutAttempt` | a lane is not freed while its process runs it |
//! | dispatch | 5.2 "calls that end within the grace (30 s) are not repeated" | `LanesReleasedOnStop` | without a fault no call is repeated |
//! | dispatch | 5.2 "After its commit intake wakes the dispatcher" | `CalledBeforeCommit` | only committed deliveries are called |
//! | scheduling | 2.4 "No tenant … changes the latency of another tenant by more than a bounded share"; 5.2 "beginning behind the last one visited" | `VisitsFirstQueueAlways` | a queue that may run is passed over at most once |
//! | scheduling | 5.2 "share = a quarter of the agent's slots while others wait" | `ShareNotLimited` | while others wait, a connection gets at most its share |
//! | scheduling | 5.2 "Interactive kinds … go before background ones" | `BackgroundFirst` | background deliveries leave a slot to interactive ones |
//! | scheduling | 5.2 "one extra slot per agent" | `ExtraSlotForAll` | background deliveries leave a slot to interactive ones |
//! | scheduling | 2.4 "Memory of every process is bounded"; 5.1 "taken before a pull"; 5.2 "Metadata is read first and bytes when the budget … has room" | `BodiesReadBeforeBudget` | bodies in memory stay within the budget |
//! | scheduling | 5.2 "and only then reads due heads"; "Stopped or paused: its queues are not due" | `HeadsReadBeforeStatus` | no delivery of a stopped connection is taken |
//! | scheduling | 5.2 "the prober is who wins `update … set probe_at …`" | `ProbesWithoutMovingTime` | an open circuit gets one probe at a time |
//! | scheduling | 5.2 "Terminal only when the agent says so in the protocol" | `TimeoutIsTerminal` | only refusals by the agent end a delivery early |
//! | scheduling | 2.7 "that it failed"; 5.2 "when it is given up, that it was" | `GivenUpSilently` | a person gets a notice of a delivery given up |
//! | runs | 3.3 "`run_events` (run, seq; written *before* Slack)" | `SentBeforeStored` | a part is stored before it is shown |
//! | runs | 3.3 "Append ambiguous: don't repeat" | `AmbiguousPartRepeated` | a part of an answer is shown once |
//! | runs | 3.3 "compare its `message` with the log" | `AmbiguousPartTakenForSent` | an answer that has ended is shown completely |
//! | runs | 3.3 "Start ambiguous: look in the gateway's log" | `BeginRepeatedWithoutLookUp` | a part of an answer is shown once |
//! | runs | 3.3 "none in 5 s → start anew": not before the call must be over | `LookedUpBeforeCallIsOver` | a part of an answer is shown once |
//! | runs | 3.3 "Re-ask: same run, `Last-Event-ID`" | `AskedFromStart` | a part of an answer is shown once |
//! | runs | 3.3 "The agent goes on after it": the id is stored with the part, not before it | `IdStoredBeforePart` | an answer that has ended is shown completely |
//! | runs | 3.3 "A running lane names its worker": the fence of a write | `WriteWithoutFence` | a process without the lane does not write the run |
//! | runs | 3.3 "A worker that can't renew ends its calls to agents and Slack before that" | `CallsAfterTakeover` | a part of an answer is shown once |
//! | runs | 3.4 "run known or not" | `StopOfUnknownRunDropped` | a run that begins after its stop shows nothing |
//! | runs | 3.4 "the row is the truth": a run asks for it after it has registered | `ControlsAskedBeforeRegistration` | if no step is possible, all work is done |
//! | runs | 3.4 "the row is the truth, read at each renewal": also by a run of another worker | `NextWorkerIgnoresStop` | if no step is possible, all work is done |
//! | runs | 1.3 "it hits only runs whose trigger is older than `event_ts`" | `StopHitsNewerRun` | a stop does not end a newer run |
//! | outbox | 5.3 "marked with the attempt before the call" | `NotMarkedBeforeCall` | Slack gets a message once |
//! | outbox | 5.3 "in the statement that takes"; a lane that was freed while marked is ambiguous | `FreedMessageTakenForUnsent` | Slack gets a message once |
//! | outbox | 5.3 "ambiguity counted": a call without an answer may have arrived | `LostAnswerTakenForUnsent` | Slack gets a message once |
//! | outbox | 2.5 "Slack is told once wherever Slack lets one look"; 5.3 "reconciled by message metadata" | `ResentWithoutLookUp` | Slack gets a message once |
//! | outbox | 5.3 "reconciled by message metadata": not before the call must be over | `LookedUpBeforeCallIsOver` | Slack gets a message once |
//! | outbox | 5.3 "whose look-up stays unclear": unclear is not absent | `UnclearLookUpTakenForAbsent` | Slack gets a message once |
//! | outbox | 5.3 "whose look-up stays unclear": unclear is not sent | `UnclearLookUpTakenForSent` | a message recorded as sent was sent |
//! | outbox | 5.3 "running lanes owned by the worker row": the fence of a record | `RecordWithoutFence` | a message recorded as sent was sent |
//! | outbox | 5.3 "with the same queue shape": a fence of (worker, attempts), without the position of the head | `RecordFencedWithoutHead` | a message recorded as sent was sent |
//! | outbox | 2.3 "their replies keep that order": the next message waits for the end of the head | `NextTakenBeforeHeadEnds` | messages of a lane keep the order |
//! | outbox | 5.3 "moves the channel's `next_at` in the same update" | `PaceMovedByRecord` | one message is taken per interval of a channel |
//! | outbox | 5.3 "`outbox_channels` … carries pace and `Retry-After` per channel" | `RetryAfterIgnored` | Slack is not called while it asks to wait |
//! | outbox | 5.3 "the due lane head with the lowest id" | `TakesAnyHead` | the head with the lowest turn is taken first |
//! | outbox | 5.3 "if that is refused too, … the row is a dead letter" | `RefusalRepeated` | attempts of a message are bounded |
//! | outbox | 2.7 "A person who waits hears something"; 5.3 "the person gets an ephemeral note" | `RefusalNotNotified` | a person gets a notice of a message given up |

mod checked;
mod acknowledgement;
mod intake;
mod stream_reset;
mod dispatch;
mod scheduling;
mod runs;
mod outbox;

/// Checks that the table above has every mutation with the promise that its test finds broken.
#[test]
fn names_every_mutation() {
    let tables = [
        acknowledgement::MUTATIONS,
        intake::MUTATIONS,
        stream_reset::MUTATIONS,
        dispatch::MUTATIONS,
        scheduling::MUTATIONS,
        runs::MUTATIONS,
        outbox::MUTATIONS,
    ];
    let table = include_str!("main.rs");
    for (mutation, promise) in tables.concat() {
        assert!(table.contains(&format!("| `{mutation}` | {promise} |")), "no row for {mutation}");
    }
}
