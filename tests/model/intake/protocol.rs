//! Steps, faults and promises of intake.

use super::{Evidence, Intake, Kind, Mutation, Phase, Rows, State, Worker, table::*};
use crate::checked::{Checked, Protocol, Steps};
use stateright::Property;

impl Protocol for Intake {
    type State = State;

    fn initial(&self) -> State {
        let rows = Rows {
            epoch: 0,
            cursor: 0,
            lease: None,
            claims: 0,
            suspect: None,
            keys: 0,
            bound: false,
        };
        State {
            rows,
            workers: [Worker::idle(), Worker::idle()],
            in_flight: Vec::new(),
            left: self.faults.clone(),
            seen: Evidence::default(),
        }
    }

    fn steps(&self, s: &State, steps: &mut Steps<'_, State>) {
        for w in 0..2 {
            self.worker_steps(s, w, steps);
            self.faults(s, w, steps);
        }
        for index in 0..s.in_flight.len() {
            steps.step("execute commit", s.in_flight[index].worker, |s| self.execute(s, index));
        }
        if let Some(lease) = s.rows.lease {
            let expire = |s: &mut State| s.rows.lease = None;
            let held =
                s.workers.iter().any(|worker| worker.claim.is_some_and(|c| c.number == lease));
            let renewed = s.workers.iter().any(|worker| worker.zombie == Some(lease));
            if !held && !renewed {
                steps.step("lease of a dead worker expires", 0, expire);
            } else if held && s.left.expiries > 0 {
                steps.fault("lease of a frozen worker expires", 0, |s| {
                    s.left.expiries -= 1;
                    expire(s);
                });
            }
        }
    }

    fn is_done(&self, s: &State) -> bool {
        s.rows.cursor == self.last()
    }

    fn promises() -> Vec<Property<Checked<Self>>> {
        vec![
            Property::always(DECIDED_ONCE, |_, s: &State| s.seen.decided.iter().all(|n| *n <= 1)),
            Property::always(EFFECTS_ONCE, |_, s: &State| s.seen.effects.iter().all(|n| *n <= 1)),
            Property::always(NOTHING_LOST, |Checked(intake): &Checked<Self>, s: &State| {
                (1..=s.rows.cursor).all(|sequence| {
                    let webhook = intake.webhook(sequence);
                    s.seen.decided[usize::from(sequence) - 1] > 0
                        && (webhook.kind == Kind::Ignored
                            || s.seen.effects[usize::from(webhook.key)] > 0)
                })
            }),
            Property::always(IN_ORDER, |_, s: &State| s.seen.delivered.is_sorted_by(|a, b| a < b)),
            Property::always(FENCED, |_, s: &State| !s.seen.stale_write),
            Property::always(BINDING_SEEN, |_, s: &State| !s.seen.binding_missed),
            Property::always(INNOCENT, |_, s: &State| !s.seen.innocent_dead),
            Property::always(OLD_RELEASE, |_, s: &State| !s.seen.newer_decided),
            Property::always(GIVEN_BACK_ONCE, |_, s: &State| s.seen.given_back <= 1),
            Property::always(CRASHES_BOUNDED, |_, s: &State| s.seen.ended_process <= 12),
            Property::sometimes("a takeover finishes the work", |m: &Checked<Self>, s: &State| {
                s.seen.claims > 1 && m.0.is_done(s)
            }),
        ]
    }
}

impl Intake {
    fn worker_steps(&self, s: &State, w: usize, steps: &mut Steps<'_, State>) {
        let worker = &s.workers[w];
        if worker.claim.is_none() {
            let claims = !worker.declines || self.is(Mutation::ClaimsAgainAfterNewerSchema);
            // Workers of one release are symmetric, so only the first idle one claims.
            let other = w == 1 && s.workers[0].claim.is_none() && self.is_one_release();
            if s.rows.lease.is_none() && claims && !other && s.rows.cursor < self.last() {
                steps.step("claim", w, |s| self.claim(s, w));
            }
            return;
        }
        match &worker.phase {
            Phase::Ready => self.prepare_steps(s, w, steps),
            Phase::Prepared(batch) => steps.step("send commit", w, |s| self.send(s, w, batch)),
            Phase::Unknown(batch) if self.is(Mutation::UnknownResultTakenForRefusal) => {
                steps.step("take for refused", w, |s| self.refused(s, w, batch));
            }
            Phase::Unknown(batch) => {
                steps.step("read cursor", w, |s| self.read_cursor(s, w, batch));
            }
            Phase::Sent(batch) => {
                let ahead = self.is(Mutation::PreparesBeforeOutcomeKnown) && worker.ahead.is_none();
                let to = self.end_of_batch(w, batch.to, worker.limit);
                if ahead && to > batch.to {
                    let next = self.decide(s, w, batch.to, batch.to + 1, to);
                    steps.step("prepare ahead", w, |s| s.workers[w].ahead = next);
                }
            }
        }
        // A worker that waits for a result may know an older cursor than the row's.
        let is_current = worker.claim.is_some_and(|claim| claim.epoch == s.rows.epoch);
        let waits = !matches!(worker.phase, Phase::Ready) && s.rows.cursor != worker.cursor;
        if self.is(Mutation::RenewalWritesCursor) && is_current && waits {
            steps.step("renew", w, |s| s.rows.cursor = s.workers[w].cursor);
        }
    }

    fn prepare_steps(&self, s: &State, w: usize, steps: &mut Steps<'_, State>) {
        let Worker { cursor, alone, limit, .. } = s.workers[w];
        if cursor == self.last() {
            return;
        }
        let first = cursor + 1;
        if self.end_of_batch(w, cursor, 1) == cursor {
            steps.step("give back: newer schema", w, |s| {
                s.workers[w].declines = true;
                s.seen.given_back += 1;
                self.give_up(s, w);
            });
            return;
        }
        if alone {
            steps.step("mark and decide alone", w, |s| self.prepare_alone(s, w));
            return;
        }
        for length in 1..=limit {
            let to = self.end_of_batch(w, cursor, length);
            if to - cursor != length {
                continue;
            }
            let unreadable = (first..=to).any(|n| self.webhook(n).kind == Kind::Unreadable);
            if unreadable && self.is(Mutation::UnreadableRowFailsBatch) {
                continue;
            }
            steps.step("prepare", w, |s| self.prepare(s, w, first, to));
            if self.is(Mutation::GapNotChecked) && length == 2 {
                steps.fault("reader skips a message", w, |s| self.prepare(s, w, first + 1, to));
            }
        }
    }

    fn faults(&self, s: &State, w: usize, steps: &mut Steps<'_, State>) {
        let Some(claim) = s.workers[w].claim else { return };
        if s.left.crashes > 0 {
            steps.fault("crash", w, |s| {
                s.left.crashes -= 1;
                self.crash(s, w);
            });
        }
        if s.left.reader_ends > 0 {
            steps.fault("reader ends", w, |s| {
                s.left.reader_ends -= 1;
                s.in_flight
                    .iter_mut()
                    .filter(|sent| sent.worker == w)
                    .for_each(|sent| sent.awaited = false);
                if self.is(Mutation::EndedReaderKeepsLease) {
                    s.workers[w] = Worker { zombie: Some(claim.number), ..Worker::idle() };
                } else {
                    self.give_up(s, w);
                }
            });
        }
        if let Phase::Sent(batch) = &s.workers[w].phase
            && s.left.lost_results > 0
        {
            steps.fault("result is lost", w, |s| {
                s.left.lost_results -= 1;
                s.in_flight
                    .iter_mut()
                    .filter(|sent| sent.worker == w)
                    .for_each(|sent| sent.awaited = false);
                s.workers[w].phase = Phase::Unknown(batch.clone());
            });
        }
    }
}
