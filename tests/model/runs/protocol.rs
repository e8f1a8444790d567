//! Steps, faults and promises of runs.

use super::{
    Evidence, Message, Mutation, PARTS, Phase, Process, Request, Row, Runs, Segment, State,
    table::*,
};
use crate::checked::{Checked, Protocol, Steps};
use stateright::Property;

impl Protocol for Runs {
    type State = State;

    fn initial(&self) -> State {
        State {
            row: Row::default(),
            has_row: false,
            claim: None,
            claims: 0,
            is_done: false,
            is_stopped: false,
            processes: [None, None],
            messages: Vec::new(),
            requests: Vec::new(),
            left: self.faults.clone(),
            seen: Evidence::default(),
        }
    }

    fn steps(&self, s: &State, steps: &mut Steps<'_, State>) {
        if self.has_stop && !s.is_stopped && !s.is_done {
            steps.step("stop", 0, Self::stop);
        }
        for index in 0..s.requests.len() {
            let process = s.requests[index].process;
            steps.step("request arrives", process, |s| self.arrive(s, index, true));
            if s.left.lost_answers > 0 {
                steps.fault("answer is lost", process, |s| {
                    s.left.lost_answers -= 1;
                    self.arrive(s, index, false);
                });
            }
            if s.left.lost_requests > 0 {
                steps.fault("request is lost", process, |s| {
                    s.left.lost_requests -= 1;
                    let request = s.requests.remove(index);
                    if request.awaited {
                        self.unclear(s, request);
                    }
                });
            }
        }
        for p in 0..s.processes.len() {
            match &s.processes[p] {
                None if s.claim.is_none() && !s.is_done => {
                    steps.step("take", p, |s| self.take(s, p))
                }
                None => {}
                Some(process) if process.is_frozen => {
                    if s.claim == Some(process.claim) {
                        steps.step("free lane", p, |s| s.claim = None);
                    }
                    steps.step("thaw", p, |s| self.thaw(s, p));
                }
                Some(process) => {
                    self.process_steps(s, p, process, steps);
                    self.faults(s, p, process, steps);
                }
            }
        }
        if s.is_done && !s.seen.newer_done {
            steps.step("newer question is answered", 0, |s| {
                s.seen.newer_done = true;
                s.seen.newer_stopped = s.is_stopped && self.is(Mutation::StopHitsNewerRun);
            });
        }
    }

    fn is_done(&self, s: &State) -> bool {
        s.is_done && s.seen.newer_done
    }

    fn promises() -> Vec<Property<Checked<Self>>> {
        vec![
            Property::always(SHOWN_ONCE, |_, s: &State| {
                (0..PARTS).all(|part| shown(s).filter(|shown| *shown == part).count() <= 1)
            }),
            Property::always(STORED_FIRST, |_, s: &State| !s.seen.shown_unstored),
            Property::always(COMPLETE, |_, s: &State| {
                !s.is_done || s.row.is_stopped || shown(s).eq(0..PARTS)
            }),
            Property::always(NO_STRAY_WRITE, |_, s: &State| !s.seen.stray_write),
            Property::always(STOPPED_SHOWS_NOTHING, |_, s: &State| {
                !s.seen.stopped_before || s.messages.is_empty()
            }),
            Property::always(NEWER_NOT_STOPPED, |_, s: &State| !s.seen.newer_stopped),
        ]
    }
}

/// Returns the parts that a person sees, in order.
fn shown(s: &State) -> impl Iterator<Item = u8> {
    s.messages.iter().flat_map(|message| message.parts.iter().copied())
}

impl Runs {
    fn stop(s: &mut State) {
        (s.seen.stopped_before, s.is_stopped) = (!s.has_row, true);
        for process in s.processes.iter_mut().flatten() {
            process.is_cancelled |= process.is_registered;
        }
    }

    fn take(&self, s: &mut State, p: usize) {
        s.claims += 1;
        s.claim = Some(s.claims);
        s.has_row = true;
        let mut row = s.row.clone();
        if self.is(Mutation::AskedFromStart) {
            row.events = 0;
        }
        let is_late = self.is(Mutation::ControlsAskedBeforeRegistration);
        s.processes[p] = Some(Process {
            claim: s.claims,
            phase: if is_late { Phase::Checked } else { Phase::Registered },
            row,
            pending: 0,
            is_registered: !is_late,
            is_cancelled: is_late && s.is_stopped,
            is_frozen: false,
        });
    }

    fn process_steps(&self, s: &State, p: usize, process: &Process, steps: &mut Steps<'_, State>) {
        let row = &process.row;
        match process.phase {
            Phase::Checked => steps.step("register", p, |s| {
                if let Some(process) = &mut s.processes[p] {
                    (process.is_registered, process.phase) = (true, next_phase(&process.row));
                }
            }),
            Phase::Registered => steps.step("ask for controls", p, |s| {
                let ignores = self.is(Mutation::NextWorkerIgnoresStop) && s.claims > 1;
                let is_dropped =
                    self.is(Mutation::StopOfUnknownRunDropped) && s.seen.stopped_before;
                let is_stopped = s.is_stopped && !ignores && !is_dropped;
                if let Some(process) = &mut s.processes[p] {
                    process.is_cancelled |= is_stopped;
                    process.phase = next_phase(&process.row);
                }
            }),
            Phase::LookUp => {
                // The look-up waits until the call of a process that ended is over.
                let is_over = !s.requests.iter().any(|request| request.message.is_none())
                    || self.is(Mutation::LookedUpBeforeCallIsOver);
                if is_over {
                    steps.step("look up segment", p, |s| self.look_up(s, p));
                }
            }
            Phase::Settle => steps.step("settle segment", p, |s| self.settle(s, p)),
            Phase::Waiting => {}
            Phase::Idle if process.is_cancelled && !row.has_ended => {
                steps.step("end as stopped", p, |s| {
                    self.write(s, p, |row| (row.has_ended, row.is_stopped) = (true, true));
                });
            }
            Phase::Idle => {
                let is_silent = self.hangs && row.events + process.pending >= 1;
                let events = row.events + process.pending;
                if !row.has_ended && events < PARTS && process.pending == 0 && !is_silent {
                    steps.step("agent sends part", p, |s| {
                        if let Some(process) = &mut s.processes[p] {
                            process.pending += 1;
                        }
                        if self.is(Mutation::IdStoredBeforePart) {
                            self.write(s, p, |row| row.events += 1);
                            if let Some(process) = &mut s.processes[p] {
                                process.row.events -= 1;
                            }
                        }
                    });
                }
                if process.pending > 0 {
                    if self.is(Mutation::SentBeforeStored) && row.segment != Segment::Open {
                        let at = row.parts.len() as u8;
                        steps.step("send before storing", p, |s| self.send(s, p, at, row.events));
                    }
                    steps.step("store part", p, |s| {
                        if let Some(process) = &mut s.processes[p] {
                            process.pending -= 1;
                        }
                        self.write(s, p, |row| {
                            row.parts.push(row.events);
                            row.events += 1;
                        });
                    });
                }
                if let Some(&part) = row.parts.get(usize::from(row.sent)) {
                    if row.segment == Segment::None {
                        steps.step("prepare segment", p, |s| {
                            self.write(s, p, |row| row.segment = Segment::Starting);
                        });
                    } else {
                        steps.step("send part", p, |s| self.send(s, p, row.sent, part));
                    }
                } else if row.has_ended {
                    steps.step("end run", p, |s| self.end(s, p));
                } else if row.events == PARTS && process.pending == 0 {
                    steps.step("agent ends", p, |s| self.write(s, p, |row| row.has_ended = true));
                }
            }
        }
    }

    /// Writes the row under the fence of the claim.
    fn write(&self, s: &mut State, p: usize, change: impl Fn(&mut Row)) {
        let Some(process) = &mut s.processes[p] else { return };
        let holds = s.claim == Some(process.claim);
        if !holds && !self.is(Mutation::WriteWithoutFence) {
            s.processes[p] = None;
            return;
        }
        change(&mut process.row);
        s.seen.stray_write |= !holds;
        s.row = process.row.clone();
    }

    fn send(&self, s: &mut State, p: usize, at: u8, part: u8) {
        if let Some(process) = &mut s.processes[p] {
            let open = s.messages.iter().rposition(|message| message.is_open);
            let message = open.filter(|_| process.row.segment == Segment::Open);
            process.phase = Phase::Waiting;
            s.requests.push(Request { process: p, at, part, message, awaited: true });
            s.requests.sort();
        }
    }

    /// Lets a request reach Slack.
    fn arrive(&self, s: &mut State, index: usize, is_answered: bool) {
        let request = s.requests.remove(index);
        s.seen.shown_unstored |= usize::from(request.at) >= s.row.parts.len();
        let is_taken = match request.message {
            None => {
                s.messages.push(Message { parts: vec![request.part], is_open: true });
                true
            }
            // Otherwise the stream has ended, and Slack rejects the part.
            Some(n) if s.messages[n].is_open => {
                s.messages[n].parts.push(request.part);
                true
            }
            Some(_) => false,
        };
        match (request.awaited, is_answered && is_taken) {
            (false, _) => {}
            (true, true) => self.confirm(s, request.process, request.at, Segment::Open),
            (true, false) => self.unclear(s, request),
        }
    }

    fn confirm(&self, s: &mut State, p: usize, at: u8, segment: Segment) {
        if let Some(process) = &mut s.processes[p] {
            process.phase = Phase::Idle;
        }
        self.write(s, p, |row| (row.sent, row.segment) = (at + 1, segment));
    }

    /// Handles a call without an answer.
    fn unclear(&self, s: &mut State, request: Request) {
        let repeats = self.is(Mutation::AmbiguousPartRepeated) && request.message.is_some();
        let begins_again =
            self.is(Mutation::BeginRepeatedWithoutLookUp) && request.message.is_none();
        if self.is(Mutation::AmbiguousPartTakenForSent) && request.message.is_some() {
            return self.confirm(s, request.process, request.at, Segment::Open);
        }
        if let Some(process) = &mut s.processes[request.process] {
            process.phase = match request.message {
                _ if repeats || begins_again => Phase::Idle,
                None => Phase::LookUp,
                Some(_) => Phase::Settle,
            };
        }
    }

    fn look_up(&self, s: &mut State, p: usize) {
        let Some(process) = &s.processes[p] else { return };
        let at = process.row.sent;
        let part = process.row.parts[usize::from(at)];
        let is_found = s.messages.iter().any(|m| m.is_open && m.parts.first() == Some(&part));
        if is_found {
            return self.confirm(s, p, at, Segment::Open);
        }
        if let Some(process) = &mut s.processes[p] {
            process.phase = Phase::Idle; // starts the segment again
        }
    }

    /// Stops the stream, so that no later request changes the message, and completes the message.
    fn settle(&self, s: &mut State, p: usize) {
        let Some(process) = &s.processes[p] else { return };
        let at = process.row.sent;
        let part = process.row.parts[usize::from(at)];
        if let Some(message) = s.messages.iter_mut().find(|message| message.is_open) {
            message.is_open = false;
            if !message.parts.contains(&part) {
                message.parts.push(part);
            }
        }
        self.confirm(s, p, at, Segment::None);
    }

    fn end(&self, s: &mut State, p: usize) {
        let Some(process) = s.processes[p].take() else { return };
        if s.claim == Some(process.claim) {
            s.messages.iter_mut().for_each(|message| message.is_open = false);
            (s.claim, s.is_done) = (None, true);
        }
    }

    /// Continues a process after a freeze. It reads its clock before it makes calls.
    fn thaw(&self, s: &mut State, p: usize) {
        let Some(process) = &mut s.processes[p] else { return };
        process.is_frozen = false;
        let holds = s.claim == Some(process.claim);
        let goes_on = self.is(Mutation::CallsAfterTakeover) || self.is(Mutation::WriteWithoutFence);
        if !holds && !goes_on {
            s.processes[p] = None;
        }
    }

    fn faults(&self, s: &State, p: usize, process: &Process, steps: &mut Steps<'_, State>) {
        let forget = |s: &mut State| {
            for request in s.requests.iter_mut().filter(|request| request.process == p) {
                request.awaited = false;
            }
            s.requests.sort();
        };
        if s.left.crashes > 0 {
            let claim = process.claim;
            steps.fault("crash", p, |s| {
                s.left.crashes -= 1;
                forget(s);
                s.processes[p] = None;
                s.claim.take_if(|holder| *holder == claim);
            });
        }
        if s.left.freezes > 0 {
            steps.fault("freeze", p, |s| {
                s.left.freezes -= 1;
                forget(s);
                if let Some(process) = &mut s.processes[p] {
                    process.is_frozen = true;
                    if process.phase == Phase::Waiting {
                        let begins = process.row.segment != Segment::Open;
                        process.phase = if begins { Phase::LookUp } else { Phase::Settle };
                    }
                }
            });
        }
    }
}

/// Returns the phase in which a process continues the run of an earlier process.
fn next_phase(row: &Row) -> Phase {
    match row.segment {
        Segment::None => Phase::Idle,
        Segment::Starting => Phase::LookUp,
        Segment::Open if usize::from(row.sent) < row.parts.len() => Phase::Settle,
        Segment::Open => Phase::Idle,
    }
}
