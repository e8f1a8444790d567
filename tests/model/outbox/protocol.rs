//! Steps, faults and promises of the outbox.

use super::{
    Attempt, Condition, Evidence, LANES, Lane, MESSAGES, Mutation, Outbox, Outcome, Phase, Process,
    State, message_at, table::*,
};
use crate::checked::{Checked, Protocol, Steps};
use stateright::Property;

impl Protocol for Outbox {
    type State = State;

    fn initial(&self) -> State {
        let lane = |tail, turn| Lane {
            head: 1,
            tail,
            turn,
            worker: None,
            attempts: 0,
            is_marked: false,
            is_ambiguous: false,
        };
        let process = |id| Process { id, condition: Condition::Up, attempt: None };
        State {
            lanes: [lane(2, 1), lane(1, 2)],
            next_turn: 3,
            is_paced: true,
            is_blocked: false,
            processes: [process(0), process(1)],
            requests: Vec::new(),
            records: Vec::new(),
            left: self.faults.clone(),
            seen: Evidence::default(),
        }
    }

    fn steps(&self, s: &State, steps: &mut Steps<'_, State>) {
        if !s.is_paced {
            steps.step("interval is over", 0, |s| (s.is_paced, s.seen.takes) = (true, 0));
        }
        if s.is_blocked {
            steps.step("Retry-After is over", 0, |s| s.is_blocked = false);
        }
        for index in 0..s.requests.len() {
            let process = s.requests[index].process;
            steps.step("request arrives", process, |s| self.arrive(s, index, false));
            if s.left.limits > 0 {
                steps.fault("Slack answers 429", process, |s| {
                    s.left.limits -= 1;
                    self.arrive(s, index, true);
                });
            }
        }
        for index in 0..s.records.len() {
            steps.step("execute record", s.records[index].process, |s| self.execute(s, index));
        }
        for p in 0..s.processes.len() {
            match s.processes[p].condition {
                Condition::Up => {
                    self.process_steps(s, p, steps);
                    self.faults(s, p, steps);
                }
                Condition::Frozen => {
                    steps.step("thaw", p, |s| s.processes[p].condition = Condition::Up);
                    steps.step("expire", p, |s| {
                        s.processes[p].condition = Condition::Expired;
                        self.free(s, s.processes[p].id);
                    });
                }
                Condition::Expired => steps.step("thaw after the TTL", p, |s| start(s, p)),
            }
        }
    }

    fn is_done(&self, s: &State) -> bool {
        s.seen.sent.len() + s.seen.failed.len() >= MESSAGES
            && s.lanes.iter().all(|lane| lane.head > lane.tail)
    }

    fn promises() -> Vec<Property<Checked<Self>>> {
        vec![
            Property::always(POSTED_ONCE, |_, s: &State| {
                (0..3).all(|m| s.seen.posts.iter().filter(|post| **post == m).count() <= 1)
            }),
            Property::always(NOTHING_DROPPED, |_, s: &State| {
                s.seen.sent.iter().all(|m| s.seen.posts.contains(m)) && !s.seen.stray_record
            }),
            Property::always(IN_ORDER, |_, s: &State| {
                !s.seen.posts.contains(&1) || s.seen.posts.first() == Some(&0)
            }),
            Property::always(PACED, |_, s: &State| s.seen.takes <= 1),
            Property::always(NOT_BLOCKED, |_, s: &State| !s.seen.called_while_blocked),
            Property::always(LOWEST_FIRST, |_, s: &State| !s.seen.passed_over),
            Property::always(ATTEMPTS_BOUND, |_, s: &State| {
                s.lanes.iter().all(|lane| lane.attempts <= 6)
            }),
            Property::always(NOTIFIED, |_, s: &State| s.seen.failed == s.seen.notified),
        ]
    }
}

impl Outbox {
    fn process_steps(&self, s: &State, p: usize, steps: &mut Steps<'_, State>) {
        let Some(attempt) = s.processes[p].attempt else { return self.take_steps(s, p, steps) };
        let set = |phase| {
            move |s: &mut State| s.processes[p].attempt = Some(Attempt { phase, ..attempt })
        };
        match attempt.phase {
            Phase::LookUp => {
                let found = s.seen.posts.contains(&attempt.message);
                let phase = if found { Phase::Record(Outcome::Sent) } else { Phase::Call };
                steps.step("look up", p, set(phase));
                if s.left.unclear > 0 {
                    let phase = match self.mutation {
                        Mutation::UnclearLookUpTakenForAbsent => Phase::Call,
                        Mutation::UnclearLookUpTakenForSent => Phase::Record(Outcome::Sent),
                        _ => Phase::Record(Outcome::Ambiguous),
                    };
                    steps.fault("look-up is unclear", p, |s| {
                        s.left.unclear -= 1;
                        set(phase)(s);
                    });
                }
            }
            Phase::Call if s.is_blocked && !self.is(Mutation::RetryAfterIgnored) => {}
            Phase::Call => steps.step("call Slack", p, |s| self.call(s, p, attempt)),
            Phase::Calling | Phase::Recording(_) => {}
            Phase::Record(outcome) => {
                steps.step("begin record", p, |s| self.record(s, p, attempt, outcome));
            }
        }
    }

    fn take_steps(&self, s: &State, p: usize, steps: &mut Steps<'_, State>) {
        let due = |lane: &Lane| lane.worker.is_none() && lane.head <= lane.tail;
        let lowest = s.lanes.iter().filter(|lane| due(lane)).map(|lane| lane.turn).min();
        for lane in 0..LANES {
            let row = s.lanes[lane];
            let turn = Some(row.turn) == lowest || self.is(Mutation::TakesAnyHead);
            // The call of a freed lane, or a call without an answer, is over before its message is
            // looked up.
            let over = !s.requests.iter().any(|request| request.lane == lane)
                || self.is(Mutation::LookedUpBeforeCallIsOver);
            if due(&row) && turn && s.is_paced && !s.is_blocked && over {
                steps.step("take", p, |s| self.take(s, p, lane));
            }
            let next = row.worker.is_some() && row.head < row.tail && s.is_paced;
            if next && self.is(Mutation::NextTakenBeforeHeadEnds) {
                steps.step("take next", p, |s| {
                    self.take(s, p, lane);
                    if let Some(attempt) = &mut s.processes[p].attempt {
                        attempt.message = message_at(lane, row.head + 1);
                    }
                });
            }
        }
    }

    fn faults(&self, s: &State, p: usize, steps: &mut Steps<'_, State>) {
        let Some(attempt) = s.processes[p].attempt else { return };
        if s.left.crashes > 0 {
            steps.fault("crash", p, |s| {
                s.left.crashes -= 1;
                let id = s.processes[p].id;
                forget(s, p);
                start(s, p);
                self.free(s, id);
            });
        }
        if s.left.freezes > 0 {
            steps.fault("freeze", p, |s| {
                s.left.freezes -= 1;
                s.processes[p].condition = Condition::Frozen;
                forget(s, p);
                if let Some(attempt) = &mut s.processes[p].attempt {
                    attempt.phase = match attempt.phase {
                        Phase::Calling => Phase::Record(Outcome::Ambiguous),
                        Phase::Recording(outcome) => Phase::Record(outcome),
                        phase => phase,
                    };
                }
            });
        }
        if s.left.lost_answers > 0 && attempt.phase == Phase::Calling {
            steps.fault("answer is lost", p, |s| {
                s.left.lost_answers -= 1;
                forget(s, p);
                self.ended(s, p, Outcome::Ambiguous);
            });
        }
        if let Phase::Recording(outcome) = attempt.phase
            && s.left.lost_results > 0
        {
            steps.fault("result is lost", p, |s| {
                s.left.lost_results -= 1;
                forget(s, p);
                self.ended(s, p, outcome);
            });
        }
    }
}

/// Makes the results of all requests and statements of a process unawaited.
fn forget(s: &mut State, p: usize) {
    s.requests.iter_mut().filter(|request| request.process == p).for_each(|r| r.awaited = false);
    s.records.iter_mut().filter(|record| record.process == p).for_each(|r| r.awaited = false);
}

fn start(s: &mut State, p: usize) {
    s.processes[p] = Process { id: s.processes[p].id + 2, condition: Condition::Up, attempt: None };
}
