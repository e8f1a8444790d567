//! Steps, faults and promises of scheduling.

use super::{
    CONNECTIONS, Delivery, Evidence, Mutation, REFUSALS, SHARE, SLOTS, Scheduling, State, table::*,
};
use crate::checked::{Checked, Protocol, Steps};
use stateright::Property;

impl Protocol for Scheduling {
    type State = State;

    fn initial(&self) -> State {
        State {
            background: self.background,
            interactive: self.interactive,
            again: Vec::new(),
            running: Vec::new(),
            bodies: 0,
            visited: 1,
            is_stopped: false,
            is_open: false,
            probing: 0,
            is_probe_due: false,
            ended: 0,
            left: self.faults.clone(),
            seen: Evidence::default(),
        }
    }

    fn steps(&self, s: &State, steps: &mut Steps<'_, State>) {
        self.take_steps(s, steps);
        for index in 0..s.running.len() {
            self.end_steps(s, index, steps);
        }
        self.breaker_steps(s, steps);
        if s.is_stopped {
            steps.step("start connection", 0, |s| s.is_stopped = false);
        } else if s.left.stops > 0 {
            steps.fault("stop connection", 0, |s| {
                s.left.stops -= 1;
                s.is_stopped = true;
            });
        }
    }

    fn is_done(&self, s: &State) -> bool {
        s.ended + s.seen.dead == self.background.iter().sum::<u8>() + self.interactive
    }

    fn promises() -> Vec<Property<Checked<Self>>> {
        vec![
            Property::always(IN_TURN, |_, s: &State| s.seen.passed_over <= 1),
            Property::always(SHARED, |_, s: &State| !s.seen.share_exceeded),
            Property::always(INTERACTIVE_FIRST, |_, s: &State| {
                let background = s.running.iter().filter(|running| !running.is_interactive);
                !s.seen.background_first && background.count() <= SLOTS
            }),
            Property::always(MEMORY_BOUND, |m: &Checked<Self>, s: &State| s.bodies <= m.0.budget),
            Property::always(STOPPED, |_, s: &State| !s.seen.called_stopped),
            Property::always(ONE_PROBE, |_, s: &State| s.seen.probes <= 1 && !s.seen.called_open),
            Property::always(DEAD_BY_REFUSAL, |_, s: &State| !s.seen.dead_early),
            Property::always(NOTIFIED, |_, s: &State| s.seen.dead == s.seen.notified),
        ]
    }
}

impl Scheduling {
    fn waiting(&self, s: &State, connection: usize, is_interactive: bool) -> Option<Delivery> {
        let of_queue =
            |d: &&Delivery| d.connection == connection && d.is_interactive == is_interactive;
        let new = Delivery { connection, is_interactive, refusals: 0 };
        let count = if !is_interactive {
            s.background[connection]
        } else if connection == 0 {
            s.interactive
        } else {
            0
        };
        s.again.iter().find(of_queue).copied().or((count > 0).then_some(new))
    }

    /// Returns true if there is a slot that a connection may use.
    fn has_place(&self, s: &State, connection: usize, is_interactive: bool) -> bool {
        let background = s.running.iter().filter(|running| !running.is_interactive).count();
        let total = s.running.len();
        let of_all = match is_interactive {
            true => total <= SLOTS,
            false if self.is(Mutation::ExtraSlotForAll) => total <= SLOTS,
            false => background < SLOTS && total <= SLOTS,
        };
        of_all && (self.is(Mutation::ShareNotLimited) || self.within_share(s, connection))
    }

    fn within_share(&self, s: &State, connection: usize) -> bool {
        let others = (0..CONNECTIONS).any(|other| {
            other != connection
                && self.waiting(s, other, false).is_some()
                && self.may_call(s, other)
        });
        let running = s.running.iter().filter(|d| d.connection == connection && !d.is_interactive);
        !others || running.count() < SHARE
    }

    fn may_call(&self, s: &State, connection: usize) -> bool {
        !(s.is_stopped && connection == 0)
    }

    fn take_steps(&self, s: &State, steps: &mut Steps<'_, State>) {
        let has_capacity = s.bodies < self.budget || self.is(Mutation::BodiesReadBeforeBudget);
        if s.is_open || !has_capacity {
            return;
        }
        // A take visits the queue after the last visited one, and skips queues without a due head
        // that may run.
        let order: Vec<usize> = if self.is(Mutation::VisitsFirstQueueAlways) {
            vec![0, 1]
        } else {
            (1..=CONNECTIONS).map(|n| (s.visited + n) % CONNECTIONS).collect()
        };
        let takeable = |connection: usize, is_interactive| {
            let stopped =
                !self.may_call(s, connection) && !self.is(Mutation::HeadsReadBeforeStatus);
            let place = self.has_place(s, connection, is_interactive);
            self.waiting(s, connection, is_interactive).filter(|_| !stopped && place)
        };
        let interactive = order.iter().find_map(|c| takeable(*c, true));
        let background = order.iter().find_map(|c| takeable(*c, false));
        let taken = if self.is(Mutation::BackgroundFirst) {
            background.or(interactive)
        } else {
            interactive.or(background)
        };
        let Some(delivery) = taken else { return };
        steps.step("take", delivery.connection, |s| {
            s.seen.background_first |= interactive.is_some() && !delivery.is_interactive;
            s.seen.share_exceeded |=
                !delivery.is_interactive && !self.within_share(s, delivery.connection);
            s.seen.called_stopped |= !self.may_call(s, delivery.connection);
            let other_waits = delivery.connection == 0
                && !delivery.is_interactive
                && self.waiting(s, 1, false).is_some()
                && self.has_place(s, 1, false);
            s.seen.passed_over = if other_waits { s.seen.passed_over + 1 } else { 0 };
            if !delivery.is_interactive {
                s.visited = delivery.connection;
            }
            if let Some(index) = s.again.iter().position(|waiting| *waiting == delivery) {
                s.again.remove(index);
            } else if delivery.is_interactive {
                s.interactive -= 1;
            } else {
                s.background[delivery.connection] -= 1;
            }
            s.bodies += 1;
            s.running.push(delivery);
            s.running.sort();
        });
    }

    fn end_steps(&self, s: &State, index: usize, steps: &mut Steps<'_, State>) {
        let delivery = s.running[index];
        if index > 0 && s.running[index - 1] == delivery {
            return;
        }
        let leave = |s: &mut State| {
            s.running.remove(index);
            s.bodies -= 1;
        };
        let give_up = |s: &mut State, refusals: u8| {
            s.seen.dead += 1;
            s.seen.dead_early |= refusals < REFUSALS;
            s.seen.notified += u8::from(!self.is(Mutation::GivenUpSilently));
        };
        steps.step("answered", delivery.connection, |s| {
            leave(s);
            s.ended += 1;
        });
        if s.left.timeouts > 0 {
            steps.fault("timed out", delivery.connection, |s| {
                s.left.timeouts -= 1;
                leave(s);
                if self.is(Mutation::TimeoutIsTerminal) {
                    return give_up(s, delivery.refusals);
                }
                s.again.push(delivery);
                s.again.sort();
            });
        }
        if s.left.refusals > 0 {
            steps.fault("refused as malformed", delivery.connection, |s| {
                s.left.refusals -= 1;
                leave(s);
                let refusals = delivery.refusals + 1;
                if refusals == REFUSALS {
                    return give_up(s, refusals);
                }
                s.again.push(Delivery { refusals, ..delivery });
                s.again.sort();
            });
        }
    }

    /// Adds the steps of the circuit breaker: the circuit opens; the worker that moves the probe
    /// time makes the probe; its success closes the circuit.
    fn breaker_steps(&self, s: &State, steps: &mut Steps<'_, State>) {
        if !s.is_open {
            if s.left.openings > 0 {
                steps.fault("circuit opens", 0, |s| {
                    s.left.openings -= 1;
                    (s.is_open, s.is_probe_due) = (true, true);
                });
            }
            return;
        }
        if s.is_probe_due && s.probing < 2 {
            // The mutation reads the probe time before it moves it. Otherwise one statement reads
            // and moves it.
            steps.step("probe is due", usize::from(s.probing), |s| {
                s.probing += 1;
                s.is_probe_due = self.is(Mutation::ProbesWithoutMovingTime) && s.probing < 2;
                s.seen.probes += 1;
            });
        }
        if s.probing > 0 {
            steps.step("probe succeeds", 0, |s| {
                (s.is_open, s.is_probe_due, s.probing, s.seen.probes) = (false, false, 0, 0);
            });
        }
    }
}
