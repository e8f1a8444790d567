//! Steps, faults and promises of dispatch.

use super::{
    Condition, Dispatch, Evidence, IDS, LANES, Lane, Mutation, Phase, Process, State, Statement,
    StatementKind, WorkerRow, lane_of, statements::fence_of, table::*,
};
use crate::checked::{Checked, Protocol, Steps};
use stateright::Property;

impl Protocol for Dispatch {
    type State = State;

    fn initial(&self) -> State {
        let lane =
            Lane { head: 1, tail: 0, rows: [None; 2], worker: None, attempts: 0, is_due: false };
        let process = |id| Process {
            id,
            condition: Condition::Up,
            stopping: false,
            attempts: [None; LANES],
            waits: false,
        };
        let mut workers = [WorkerRow::Absent; IDS];
        workers[..2].fill(WorkerRow::Alive);
        State {
            lanes: [lane; LANES],
            slots: [None; 2],
            workers,
            processes: [process(0), process(1)],
            statements: Vec::new(),
            enqueued: 0,
            is_begun: false,
            left: self.faults.clone(),
            seen: Evidence::default(),
        }
    }

    fn steps(&self, s: &State, steps: &mut Steps<'_, State>) {
        let enqueues =
            s.statements.iter().any(|sent| matches!(sent.kind, StatementKind::Enqueue { .. }));
        if let (Some(&delivery), false) = (self.deliveries.get(s.enqueued), enqueues) {
            let lane = lane_of(delivery);
            let seen = s.lanes[lane];
            if self.is(Mutation::EnqueueReadsSnapshot) {
                let kind = StatementKind::Enqueue { delivery, seen };
                let enqueue = Statement { process: 0, id: 0, lane, awaited: false, kind };
                steps.step("begin enqueue", 0, |s| send(s, enqueue));
            } else {
                steps.step("enqueue", 0, |s| self.enqueue(s, delivery, seen));
            }
        }
        if let (Some(&delivery), true) =
            (self.deliveries.get(s.enqueued), self.is(Mutation::CalledBeforeCommit))
        {
            steps.step("call before the commit", 0, |s| self.called(s, delivery));
        }
        for index in 0..s.statements.len() {
            let name = match s.statements[index].kind {
                StatementKind::Take { .. } => "execute take",
                StatementKind::Taken(_) => "result of take",
                StatementKind::End { .. } => "execute end",
                StatementKind::Free { .. } => "execute free",
                StatementKind::Enqueue { .. } => "execute enqueue",
            };
            steps.step(name, s.statements[index].process, |s| self.execute(s, index));
        }
        for p in 0..s.processes.len() {
            self.process_steps(s, p, steps);
            self.faults(s, p, steps);
        }
        self.reaper_steps(s, steps);
    }

    fn is_done(&self, s: &State) -> bool {
        s.enqueued == self.deliveries.len()
            && s.seen.replies.len() >= self.deliveries.len()
            && s.lanes.iter().all(|lane| lane.is_empty() && lane.worker.is_none())
            && s.slots.iter().all(Option::is_none)
    }

    fn promises() -> Vec<Property<Checked<Self>>> {
        vec![
            Property::always(REPLIES_ONCE, |_, s: &State| {
                (0..3).all(|d| s.seen.replies.iter().filter(|reply| **reply == d).count() <= 1)
            }),
            Property::always(IN_ORDER, |_, s: &State| {
                [&s.seen.first_calls, &s.seen.replies].iter().all(|list| {
                    let place = |d| list.iter().position(|other| *other == d);
                    place(1).is_none() || place(0).is_some_and(|first| Some(first) < place(1))
                })
            }),
            Property::always(NO_STRAY_END, |_, s: &State| !s.seen.stray_end),
            Property::always(RUNS_ONCE, |_, s: &State| {
                (0..LANES).all(|lane| calls(s).filter(|called| *called == lane).count() <= 1)
            }),
            Property::always(SLOTS_BOUND, |m: &Checked<Self>, s: &State| {
                let running = s.lanes.iter().filter(|lane| lane.worker.is_some()).count();
                running <= m.0.slots && calls(s).count() <= m.0.slots
            }),
            Property::always(SLOTS_AND_LANES, |_, s: &State| {
                s.lanes.iter().enumerate().all(|(n, lane)| {
                    let held = s.slots.iter().flatten().filter(|(of, _)| *of == n);
                    held.count() == usize::from(lane.worker.is_some())
                })
            }),
            Property::always(NO_NEEDLESS_CALL, |_, s: &State| {
                s.seen.called.iter().map(|calls| calls.saturating_sub(1)).sum::<u8>()
                    <= s.seen.excuses
            }),
            Property::always(COMMITTED_ONLY, |m: &Checked<Self>, s: &State| {
                let later = m.0.deliveries.iter().skip(s.enqueued);
                later.into_iter().all(|delivery| s.seen.called[usize::from(*delivery)] == 0)
            }),
            Property::always(NOT_FREED_ALIVE, |_, s: &State| !s.seen.freed_alive),
        ]
    }
}

/// Returns the lanes for which a running process makes a call.
fn calls(s: &State) -> impl Iterator<Item = usize> {
    let runs = |process: &&Process| matches!(process.condition, Condition::Up | Condition::Cut);
    s.processes.iter().filter(runs).flat_map(|process| {
        let attempts = process.attempts.iter().enumerate();
        attempts.filter(|(_, a)| a.is_some_and(|a| a.phase == Phase::Calling)).map(|(lane, _)| lane)
    })
}

fn send(s: &mut State, statement: Statement) {
    s.statements.push(statement);
    s.statements.sort();
}

fn is_result(sent: &Statement) -> bool {
    matches!(sent.kind, StatementKind::Taken(_))
}

impl Dispatch {
    fn process_steps(&self, s: &State, p: usize, steps: &mut Steps<'_, State>) {
        let process = &s.processes[p];
        match process.condition {
            Condition::Up => {}
            Condition::Cut => {
                steps.step("end calls before the TTL is over", p, |s| {
                    s.processes[p].attempts = [None; LANES];
                    s.processes[p].condition = Condition::Dead;
                });
                return self.call_steps(s, p, steps);
            }
            Condition::Frozen => return steps.step("thaw", p, |s| self.come_back(s, p)),
            Condition::Dead => return steps.step("start", p, |s| start(s, p)),
            Condition::Stopped => return,
        }
        self.call_steps(s, p, steps);
        let id = process.id;
        if process.stopping {
            if process.attempts == [None; LANES] && !process.waits {
                steps.step("stopped", p, |s| s.processes[p].condition = Condition::Stopped);
            }
            return;
        }
        for lane in 0..LANES {
            let row = &s.lanes[lane];
            let slot = (0..self.slots).find(|slot| s.slots[*slot].is_none());
            let can = !process.waits && process.attempts[lane].is_none() && (p == 0 || s.is_begun);
            if let (true, true, Some(slot)) = (can, row.is_takeable(), slot) {
                let kind = StatementKind::Take { slot };
                let take = Statement { process: p, id, lane, awaited: true, kind };
                steps.step("begin take", p, |s| {
                    (s.processes[p].waits, s.is_begun) = (true, true);
                    send(s, take);
                });
            }
            // Freeing compares the lane with the memory, which lacks a take whose result is on its
            // way.
            let can = !process.waits || self.is(Mutation::FreesDuringTake);
            let freeing = s.statements.iter().any(|sent| {
                sent.id == id && sent.awaited && matches!(sent.kind, StatementKind::Free { .. })
            });
            if let Some(fence) = fence_of(row)
                && fence.id == id
                && process.attempts[lane].is_none()
                && can
                && !freeing
                && !self.is(Mutation::NeverFreesOwnLanes)
            {
                let free = Statement {
                    process: p,
                    id,
                    lane,
                    awaited: true,
                    kind: StatementKind::Free { fence },
                };
                steps.step("begin free own", p, |s| {
                    s.processes[p].waits = true;
                    send(s, free);
                });
            }
        }
    }

    fn call_steps(&self, s: &State, p: usize, steps: &mut Steps<'_, State>) {
        for lane in 0..LANES {
            let Some(attempt) = s.processes[p].attempts[lane] else { continue };
            let set = |s: &mut State, phase| {
                s.processes[p].attempts[lane] = Some(super::Attempt { phase, ..attempt });
            };
            match attempt.phase {
                Phase::Taken => steps.step("call agent", p, |s| {
                    set(s, Phase::Calling);
                    self.called(s, attempt.delivery);
                }),
                Phase::Calling => {
                    steps.step("answered", p, |s| set(s, Phase::Answered));
                    if s.left.failures > 0 && s.processes[p].condition == Condition::Up {
                        steps.fault("attempt fails", p, |s| {
                            s.left.failures -= 1;
                            s.seen.excuses += 1;
                            s.processes[p].attempts[lane] = None;
                            self.retry(s, lane, attempt.fence);
                        });
                    }
                }
                Phase::Answered if s.processes[p].condition == Condition::Up => {
                    let row = &s.lanes[lane];
                    let (fence, delivery) = (attempt.fence, attempt.delivery);
                    let more = self.is(Mutation::NextHeadReadFromSnapshot) && row.head < row.tail;
                    let kind = StatementKind::End { fence, delivery, more };
                    let id = s.processes[p].id;
                    steps.step("begin end", p, |s| {
                        set(s, Phase::Ending);
                        send(s, Statement { process: p, id, lane, awaited: true, kind });
                    });
                }
                _ => {}
            }
        }
    }

    fn called(&self, s: &mut State, delivery: u8) {
        s.seen.called[usize::from(delivery)] += 1;
        if !s.seen.first_calls.contains(&delivery) {
            s.seen.first_calls.push(delivery);
        }
    }

    /// Continues a process after a freeze. It reads its clock first: if its row may have expired,
    /// its calls end, and it starts under a new id.
    fn come_back(&self, s: &mut State, p: usize) {
        let process = &mut s.processes[p];
        process.condition = Condition::Up;
        let expired = s.workers[process.id] != WorkerRow::Alive;
        if expired && self.is(Mutation::ExpiredRowRenewed) {
            s.workers[process.id] = WorkerRow::Alive;
        } else if expired && !self.is(Mutation::ThawedProcessGoesOn) {
            start(s, p);
        }
    }

    /// Adds the steps that any running process takes for an expired worker row: marks it, frees its
    /// lanes one by one, deletes it.
    fn reaper_steps(&self, s: &State, steps: &mut Steps<'_, State>) {
        if !s.processes.iter().any(|process| process.condition == Condition::Up) {
            return;
        }
        for id in 0..IDS {
            let holder = s.processes.iter().find(|process| process.id == id);
            let late = holder.is_none_or(|process| match process.condition {
                Condition::Up => self.is(Mutation::LiveWorkerReaped),
                Condition::Cut => self.is(Mutation::CallsAfterTtl),
                Condition::Frozen | Condition::Dead | Condition::Stopped => true,
            });
            let lanes = (0..LANES).filter(|lane| s.lanes[*lane].worker == Some(id));
            let mut lanes = lanes.peekable();
            match s.workers[id] {
                WorkerRow::Alive if late => steps.step("mark expired row", id, |s| {
                    s.workers[id] = WorkerRow::Expired;
                }),
                WorkerRow::Expired => {
                    if lanes.peek().is_none() || self.is(Mutation::RowDeletedBeforeLanesAreFree) {
                        steps.step("delete row", id, |s| s.workers[id] = WorkerRow::Absent);
                    }
                    for lane in lanes {
                        steps.step("free lane", lane, |s| self.free(s, lane));
                    }
                }
                _ => {}
            }
        }
    }

    fn faults(&self, s: &State, p: usize, steps: &mut Steps<'_, State>) {
        let process = &s.processes[p];
        // A process that restarts gets an unused id.
        let startable = process.id + 2 < IDS;
        if process.condition != Condition::Up || !startable {
            return;
        }
        let mut fault = |name, left: fn(&mut super::Faults) -> &mut u8, condition| {
            if *left(&mut s.left.clone()) > 0 {
                steps.fault(name, p, |s| {
                    *left(&mut s.left) -= 1;
                    (s.seen.excuses, s.is_begun) = (s.seen.excuses + 2, true);
                    s.processes[p].condition = condition;
                    s.statements.retain(|sent| sent.process != p || !is_result(sent));
                    for sent in s.statements.iter_mut().filter(|sent| sent.process == p) {
                        sent.awaited = false;
                    }
                    s.statements.sort();
                    let process = &mut s.processes[p];
                    process.waits = false;
                    for attempt in process.attempts.iter_mut().flatten() {
                        if attempt.phase == Phase::Ending {
                            attempt.phase = Phase::Answered;
                        }
                    }
                    if condition == Condition::Dead {
                        process.attempts = [None; LANES];
                    }
                });
            }
        };
        fault("crash", |left| &mut left.crashes, Condition::Dead);
        fault("freeze", |left| &mut left.freezes, Condition::Frozen);
        fault("lose Postgres", |left| &mut left.cuts, Condition::Cut);
        if s.left.stops > 0 && !process.stopping {
            steps.fault("stop", p, |s| {
                s.left.stops -= 1;
                (s.processes[p].stopping, s.is_begun) = (true, true);
                if self.is(Mutation::LanesReleasedOnStop) {
                    for lane in 0..LANES {
                        if s.lanes[lane].worker == Some(s.processes[p].id) {
                            s.processes[p].attempts[lane] = None;
                            self.free(s, lane);
                        }
                    }
                }
            });
        }
        self.lost_results(s, p, steps);
    }

    fn lost_results(&self, s: &State, p: usize, steps: &mut Steps<'_, State>) {
        if s.left.lost_results == 0 {
            return;
        }
        for (index, sent) in s.statements.iter().enumerate() {
            let lane = sent.lane;
            if !sent.awaited || sent.process != p {
                continue;
            }
            steps.fault("result is lost", p, |s| {
                s.left.lost_results -= 1;
                s.seen.excuses += 1;
                if is_result(sent) {
                    s.statements.remove(index);
                } else {
                    s.statements[index].awaited = false;
                    s.statements.sort();
                }
                let process = &mut s.processes[p];
                match sent.kind {
                    StatementKind::End { .. } => {
                        // The end statement is sent again.
                        if let Some(attempt) = &mut process.attempts[lane] {
                            attempt.phase = Phase::Answered;
                        }
                    }
                    _ => process.waits = false,
                }
            });
        }
    }
}

/// Starts a process under a new id.
fn start(s: &mut State, p: usize) {
    let id = s.processes[p].id + 2;
    s.workers[id] = WorkerRow::Alive;
    s.processes[p] = Process {
        id,
        condition: Condition::Up,
        stopping: false,
        attempts: [None; LANES],
        waits: false,
    };
}
