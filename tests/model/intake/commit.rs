//! The commit statement as Postgres executes it: a fenced update from which all other parts select.

use super::{Batch, Decision, Intake, Kind, Mutation, Phase, State, Statement};

impl Intake {
    /// Executes a statement. Its worker gets the result if it still waits.
    pub(super) fn execute(&self, s: &mut State, index: usize) {
        let Statement { worker, claim, batch, awaited } = s.in_flight.remove(index);
        let is_owner = claim.number == s.seen.claims;
        let epoch = claim.epoch == s.rows.epoch || self.is(Mutation::CommitWithoutEpoch);
        let from = batch.from == s.rows.cursor || self.is(Mutation::CommitWithoutCursor);
        if !epoch || !from {
            if self.is(Mutation::EffectsNotFenced) && !self.conflicts(s, &batch) {
                s.seen.stale_write |= !is_owner;
                self.apply(s, &batch, worker);
            }
            if awaited {
                s.workers[worker].phase = Phase::Unknown(batch);
            }
            return;
        }
        let refused = batch.webhooks().any(|(sequence, decision)| {
            self.webhook(sequence).kind == Kind::Refused
                && matches!(decision, Decision::Apply { .. })
        });
        if refused || self.conflicts(s, &batch) {
            if awaited {
                self.refused(s, worker, &batch);
            }
            return;
        }
        s.seen.stale_write |= !is_owner;
        self.apply(s, &batch, worker);
        (s.rows.cursor, s.rows.claims, s.rows.suspect) = (batch.to, 0, None);
        if awaited {
            self.committed(s, worker, &batch);
        }
    }

    /// Returns true if a dedup key exists already. Keys are inserted without `on conflict`, so the
    /// commit then fails.
    fn conflicts(&self, s: &State, batch: &Batch) -> bool {
        if self.is(Mutation::DedupOnlyWithinBatch) || self.is(Mutation::DedupOnlyAcrossBatches) {
            return false;
        }
        let mut keys = s.rows.keys;
        batch.webhooks().filter(|(_, decision)| *decision != Decision::Ignore).any(
            |(sequence, _)| {
                let key = 1 << self.webhook(sequence).key;
                let exists = keys & key != 0;
                keys |= key;
                exists
            },
        )
    }

    fn apply(&self, s: &mut State, batch: &Batch, worker: usize) {
        for (sequence, decision) in batch.webhooks() {
            let webhook = self.webhook(sequence);
            let key = usize::from(webhook.key);
            s.seen.decided[usize::from(sequence) - 1] += 1;
            s.seen.newer_decided |= webhook.kind == Kind::Newer && worker == 0;
            match decision {
                Decision::Ignore => continue,
                Decision::Apply { .. } if webhook.kind == Kind::Link => {
                    s.rows.bound = true;
                    // The mutation counted the effect when it sent the batch.
                    s.seen.effects[key] += u8::from(!self.is(Mutation::EffectsOutsideTransaction));
                }
                Decision::Apply { bound } => {
                    s.seen.effects[key] += 1;
                    s.seen.delivered.push(sequence);
                    let linked =
                        (1..sequence).any(|before| self.webhook(before).kind == Kind::Link);
                    s.seen.binding_missed |= bound != linked;
                }
                Decision::DeadLetter => {
                    s.seen.effects[key] += 1;
                    s.seen.innocent_dead |=
                        !matches!(webhook.kind, Kind::Refused | Kind::Crashes | Kind::Unreadable);
                    if self.is(Mutation::DeadLetterWithoutKey) {
                        continue;
                    }
                }
            }
            s.rows.keys |= 1 << webhook.key;
        }
    }
}
