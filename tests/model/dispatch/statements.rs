//! Statements of dispatch as Postgres executes them.

use super::{
    Attempt, Condition, Dispatch, Fence, Lane, Mutation, Phase, State, Statement, StatementKind,
    WorkerRow, lane_of,
};

impl Dispatch {
    /// Executes a statement on the newest versions of its rows.
    pub(super) fn execute(&self, s: &mut State, index: usize) {
        let sent = s.statements.remove(index);
        match sent.kind {
            StatementKind::Take { slot } => self.take(s, &sent, slot),
            StatementKind::Taken(attempt) => {
                s.processes[sent.process].waits = false;
                s.processes[sent.process].attempts[sent.lane] = attempt;
            }
            StatementKind::End { fence, delivery, more } => {
                let (lane, process) = (sent.lane, sent.process);
                self.end(s, lane, fence, delivery, more);
                if sent.awaited {
                    s.processes[process].attempts[lane] = None;
                }
            }
            StatementKind::Free { fence } => {
                let lane = s.lanes[sent.lane];
                let matches = if self.is(Mutation::FreesWithoutAttempt) {
                    lane.worker == Some(fence.id)
                } else {
                    fence_of(&lane) == Some(fence)
                };
                if matches {
                    self.free(s, sent.lane);
                }
                if sent.awaited {
                    s.processes[sent.process].waits = false;
                }
            }
            StatementKind::Enqueue { delivery, seen } => self.enqueue(s, delivery, seen),
        }
    }

    pub(super) fn enqueue(&self, s: &mut State, delivery: u8, seen: Lane) {
        let lane = &mut s.lanes[lane_of(delivery)];
        let before = if self.is(Mutation::EnqueueReadsSnapshot) { seen } else { *lane };
        lane.tail = before.tail + 1;
        lane.rows[usize::from(lane.tail) - 1] = Some(delivery);
        if before.is_empty() {
            lane.is_due = true;
        }
        s.enqueued += 1;
    }

    fn take(&self, s: &mut State, sent: &Statement, slot: usize) {
        let (id, lane) = (sent.id, sent.lane);
        let live = s.workers[id] == WorkerRow::Alive
            || self.is(Mutation::TakeChecksNoLiveness)
            || self.is(Mutation::TakeChecksLivenessInSnapshot);
        let free = s.slots[slot].is_none() || self.is(Mutation::SlotsCountedInSnapshot);
        let takes = live && free && s.lanes[lane].is_takeable();
        if takes {
            s.slots[slot] = Some((lane, id));
            let row = &mut s.lanes[lane];
            (row.worker, row.is_due, row.attempts) = (Some(id), false, row.attempts + 1);
        }
        if !sent.awaited {
            return;
        }
        let row = s.lanes[lane];
        let attempt = match (fence_of(&row), row.head_delivery()) {
            (Some(fence), Some(delivery)) if takes => {
                Some(Attempt { fence, delivery, phase: Phase::Taken })
            }
            _ => None,
        };
        s.statements.push(Statement { kind: StatementKind::Taken(attempt), ..sent.clone() });
        s.statements.sort();
    }

    /// Ends an attempt: deletes the delivery, moves the head, frees the slot, writes the replies to
    /// the outbox.
    fn end(&self, s: &mut State, lane: usize, fence: Fence, delivery: u8, more: bool) {
        let row = s.lanes[lane];
        let matches = match self.mutation {
            Mutation::EndWithoutFence => !row.is_empty(),
            Mutation::EndFencedWithoutWorker => {
                row.attempts == fence.attempts && row.head == fence.head
            }
            Mutation::EndFencedWithoutHead => {
                row.worker == Some(fence.id) && row.attempts == fence.attempts
            }
            _ => fence_of(&row) == Some(fence),
        };
        if !matches {
            return;
        }
        s.seen.stray_end |= fence_of(&row) != Some(fence) || row.head_delivery() != Some(delivery);
        s.seen.replies.push(delivery);
        let row = &mut s.lanes[lane];
        row.rows[usize::from(row.head) - 1] = None;
        (row.head, row.worker, row.attempts) = (row.head + 1, None, 0);
        let more =
            if self.is(Mutation::NextHeadReadFromSnapshot) { more } else { row.head <= row.tail };
        row.is_due = more;
        if !self.is(Mutation::EndDoesNotFreeSlot) {
            free_slot(s, lane);
        }
    }

    /// Frees a lane after a failed attempt, so that the attempt is retried.
    pub(super) fn retry(&self, s: &mut State, lane: usize, fence: Fence) {
        if fence_of(&s.lanes[lane]) == Some(fence) {
            (s.lanes[lane].worker, s.lanes[lane].is_due) = (None, true);
            free_slot(s, lane);
        }
    }

    /// Frees a lane and its slot. The attempt counts.
    pub(super) fn free(&self, s: &mut State, lane: usize) {
        let id = s.lanes[lane].worker;
        s.seen.freed_alive |= s.processes.iter().any(|process| {
            let runs = process.attempts[lane]
                .is_some_and(|attempt| Some(attempt.fence) == fence_of(&s.lanes[lane]));
            Some(process.id) == id && process.condition == Condition::Up && runs
        });
        (s.lanes[lane].worker, s.lanes[lane].is_due) = (None, true);
        if !self.is(Mutation::FreedLaneKeepsSlot) {
            free_slot(s, lane);
        }
    }
}

/// Returns the fence of the attempt that runs in a lane.
pub(super) fn fence_of(lane: &Lane) -> Option<Fence> {
    lane.worker.map(|id| Fence { id, head: lane.head, attempts: lane.attempts })
}

fn free_slot(s: &mut State, lane: usize) {
    for slot in &mut s.slots {
        if slot.is_some_and(|(held_by, _)| held_by == lane) {
            *slot = None;
        }
    }
}
