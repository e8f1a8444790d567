//! Steps of a send: take, look up, call, record.

use super::{
    Attempt, Fence, Lane, Mutation, Outbox, Outcome, Phase, Record, Request, State, fence_of,
    message_at,
};

impl Outbox {
    /// Takes and marks the head of a lane, and moves the channel's time in the same statement.
    pub(super) fn take(&self, s: &mut State, p: usize, lane: usize) {
        let due = |other: &&Lane| other.worker.is_none() && other.head <= other.tail;
        let lowest = s.lanes.iter().filter(due).map(|other| other.turn).min();
        s.seen.passed_over |= lowest < Some(s.lanes[lane].turn);
        s.seen.takes += 1;
        s.is_paced = self.is(Mutation::PaceMovedByRecord);
        let id = s.processes[p].id;
        let row = &mut s.lanes[lane];
        let was_ambiguous = row.is_ambiguous;
        (row.worker, row.attempts) = (Some(id), row.attempts + 1);
        row.is_marked = !self.is(Mutation::NotMarkedBeforeCall);
        let fence = Fence { id, head: row.head, attempts: row.attempts };
        let look_up = was_ambiguous && !self.is(Mutation::ResentWithoutLookUp);
        let phase = if look_up { Phase::LookUp } else { Phase::Call };
        let message = message_at(lane, row.head);
        s.processes[p].attempt = Some(Attempt { lane, fence, message, was_ambiguous, phase });
    }

    /// Sends the request.
    pub(super) fn call(&self, s: &mut State, p: usize, attempt: Attempt) {
        s.seen.called_while_blocked |= s.is_blocked;
        let Attempt { lane, message, .. } = attempt;
        s.requests.push(Request { process: p, lane, message, awaited: true });
        s.requests.sort();
        s.processes[p].attempt = Some(Attempt { phase: Phase::Calling, ..attempt });
    }

    /// Lets a request reach Slack, which answers. Message 2 is rejected.
    pub(super) fn arrive(&self, s: &mut State, index: usize, is_limited: bool) {
        let request = s.requests.remove(index);
        let is_refused = request.message == 2;
        if is_limited {
            s.is_blocked = true;
        } else if !is_refused {
            s.seen.posts.push(request.message);
        }
        let outcome = match (is_limited, is_refused) {
            (true, _) => Outcome::Later,
            (_, true) if self.is(Mutation::RefusalRepeated) => Outcome::Later,
            (_, true) => Outcome::Failed,
            _ => Outcome::Sent,
        };
        if request.awaited {
            self.ended(s, request.process, outcome);
        }
    }

    /// Sets the outcome of a call, which is recorded next.
    pub(super) fn ended(&self, s: &mut State, p: usize, outcome: Outcome) {
        if let Some(attempt) = &mut s.processes[p].attempt {
            attempt.phase = Phase::Record(outcome);
        }
    }

    /// Sends the statement that records an outcome.
    pub(super) fn record(&self, s: &mut State, p: usize, attempt: Attempt, outcome: Outcome) {
        let Attempt { lane, fence, message, .. } = attempt;
        s.records.push(Record { process: p, lane, fence, message, outcome, awaited: true });
        s.records.sort();
        s.processes[p].attempt = Some(Attempt { phase: Phase::Recording(outcome), ..attempt });
    }

    /// Executes the statement that records an outcome.
    pub(super) fn execute(&self, s: &mut State, index: usize) {
        let Record { process, lane, fence, message, outcome, awaited } = s.records.remove(index);
        if awaited {
            s.processes[process].attempt = None;
        }
        let row = s.lanes[lane];
        let matches = match self.mutation {
            Mutation::RecordWithoutFence => row.head <= row.tail,
            Mutation::RecordFencedWithoutHead => {
                row.worker == Some(fence.id) && row.attempts == fence.attempts
            }
            _ => fence_of(&row) == Some(fence),
        };
        if !matches {
            return;
        }
        s.seen.stray_record |= fence_of(&row) != Some(fence);
        if self.is(Mutation::PaceMovedByRecord) {
            s.is_paced = false;
        }
        let row = &mut s.lanes[lane];
        (row.worker, row.is_marked) = (None, false);
        match outcome {
            Outcome::Later => {}
            Outcome::Ambiguous => row.is_ambiguous = !self.is(Mutation::LostAnswerTakenForUnsent),
            Outcome::Sent | Outcome::Failed => {
                (row.head, row.attempts, row.is_ambiguous, row.turn) =
                    (row.head + 1, 0, false, s.next_turn);
                s.next_turn += 1;
            }
        }
        match outcome {
            Outcome::Sent => s.seen.sent.push(message),
            Outcome::Failed => {
                s.seen.failed.push(message);
                if !self.is(Mutation::RefusalNotNotified) {
                    s.seen.notified.push(message);
                }
            }
            _ => {}
        }
    }

    /// Frees the lanes of a process that ended or expired. A marked message may have been sent, so
    /// it becomes ambiguous.
    pub(super) fn free(&self, s: &mut State, id: usize) {
        for lane in s.lanes.iter_mut().filter(|lane| lane.worker == Some(id)) {
            lane.worker = None;
            lane.is_ambiguous |= lane.is_marked && !self.is(Mutation::FreedMessageTakenForUnsent);
            lane.is_marked = false;
        }
    }
}
