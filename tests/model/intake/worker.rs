//! A worker of intake: claims the partition, prepares and sends batches, and handles their results.

use super::{
    BATCH, Batch, Claim, Decision, Intake, Kind, Mutation, Phase, State, Statement, Worker,
};

impl Worker {
    /// Returns a worker that owns nothing.
    pub(super) fn idle() -> Self {
        Self {
            claim: None,
            cursor: 0,
            phase: Phase::Ready,
            limit: BATCH,
            prepared_anew: false,
            alone: false,
            declines: false,
            zombie: None,
            cached_bound: false,
            ahead: None,
        }
    }
}

impl Intake {
    /// Claims the partition: raises the epoch and reads the cursor.
    pub(super) fn claim(&self, s: &mut State, w: usize) {
        s.seen.claims += 1;
        if !self.is(Mutation::ClaimKeepsEpoch) {
            s.rows.epoch += 1;
        }
        if !self.is(Mutation::ClaimsNotCounted) {
            s.rows.claims = (s.rows.claims + 1).min(3);
        }
        s.rows.lease = Some(s.seen.claims);
        let alone = s.rows.claims >= 3 || s.rows.suspect.is_some();
        s.workers[w] = Worker {
            claim: Some(Claim { number: s.seen.claims, epoch: s.rows.epoch }),
            cursor: s.rows.cursor,
            limit: if alone { 1 } else { BATCH },
            alone,
            declines: s.workers[w].declines,
            cached_bound: s.rows.bound,
            ..Worker::idle()
        };
    }

    /// Ends a reader and gives up its lease.
    pub(super) fn give_up(&self, s: &mut State, w: usize) {
        let claim = s.workers[w].claim.map(|claim| claim.number);
        if s.rows.lease == claim {
            s.rows.lease = None;
        }
        let declines = s.workers[w].declines;
        s.workers[w] = Worker { declines, ..Worker::idle() };
    }

    /// Ends the process. Another one starts in its place.
    pub(super) fn crash(&self, s: &mut State, w: usize) {
        s.in_flight
            .iter_mut()
            .filter(|sent| sent.worker == w)
            .for_each(|sent| sent.awaited = false);
        let declines = s.workers[w].declines;
        s.workers[w] = Worker { declines, ..Worker::idle() };
    }

    /// Returns the last webhook of a batch of at most `length` behind a cursor. A batch ends before
    /// a webhook of a newer release. A webhook with other effects than deliveries is a batch of its
    /// own.
    pub(super) fn end_of_batch(&self, w: usize, cursor: u8, length: u8) -> u8 {
        let mut to = cursor;
        while to < self.last() && to - cursor < length {
            let kind = self.webhook(to + 1).kind;
            let newer = kind == Kind::Newer && w == 0 && !self.is(Mutation::NewerSchemaDecided);
            let alone = kind == Kind::Link && !self.is(Mutation::LinkSharesBatch);
            if newer || (alone && to > cursor) {
                break;
            }
            to += 1;
            if alone {
                break;
            }
        }
        to
    }

    /// Decides a batch by the current rows of Postgres. Returns `None` if a webhook crashes the
    /// process.
    pub(super) fn decide(
        &self,
        s: &State,
        w: usize,
        cursor: u8,
        first: u8,
        to: u8,
    ) -> Option<Batch> {
        let mut keys = if self.is(Mutation::DedupOnlyWithinBatch) { 0 } else { s.rows.keys };
        let cached = self.is(Mutation::DecidesFromCache);
        let bound = if cached { s.workers[w].cached_bound } else { s.rows.bound };
        let mut decisions = Vec::new();
        for sequence in first..=to {
            let webhook = self.webhook(sequence);
            let copy = keys & (1 << webhook.key) != 0;
            decisions.push(match webhook.kind {
                Kind::Ignored => Decision::Ignore,
                _ if copy => Decision::Ignore,
                Kind::Crashes => return None,
                Kind::Unreadable => Decision::DeadLetter,
                _ => Decision::Apply { bound },
            });
            if !self.is(Mutation::DedupOnlyAcrossBatches) && webhook.kind != Kind::Ignored {
                keys |= 1 << webhook.key;
            }
        }
        Some(Batch { from: cursor, first, to, decisions })
    }

    /// Decides a batch, or crashes at one of its webhooks.
    pub(super) fn prepare(&self, s: &mut State, w: usize, first: u8, to: u8) {
        let cursor = s.workers[w].cursor;
        match self.decide(s, w, cursor, first, to) {
            Some(batch) => s.workers[w].phase = Phase::Prepared(batch),
            None => {
                s.seen.ended_process = (s.seen.ended_process + 1).min(13);
                self.crash(s, w);
            }
        }
    }

    /// Marks the next webhook and decides it alone. A webhook that was marked twice becomes a dead
    /// letter without a decision.
    pub(super) fn prepare_alone(&self, s: &mut State, w: usize) {
        let (claim, next) = (s.workers[w].claim, s.workers[w].cursor + 1);
        if claim.is_none_or(|claim| claim.epoch != s.rows.epoch) {
            return self.give_up(s, w);
        }
        let marks = s.rows.suspect.filter(|(sequence, _)| *sequence == next).map_or(0, |s| s.1);
        if marks == 2 || self.is(Mutation::GivesUpFirstAfterThreeClaims) {
            s.workers[w].phase = Phase::Prepared(dead_letter(next));
            return;
        }
        if self.is(Mutation::MarkedAfterDeciding) && self.webhook(next).kind == Kind::Crashes {
            return self.prepare(s, w, next, next);
        }
        s.rows.suspect = Some((next, marks + 1));
        self.prepare(s, w, next, next);
        if matches!(s.workers[w].phase, Phase::Prepared(_)) {
            s.rows.suspect = None; // cleared after the decision
        }
    }

    /// Sends a batch.
    pub(super) fn send(&self, s: &mut State, w: usize, batch: &Batch) {
        let Some(claim) = s.workers[w].claim else { return };
        if self.is(Mutation::EffectsOutsideTransaction) {
            for (sequence, decision) in batch.webhooks() {
                let webhook = self.webhook(sequence);
                if webhook.kind == Kind::Link && decision != Decision::Ignore {
                    s.seen.effects[usize::from(webhook.key)] += 1;
                    s.rows.bound = true;
                }
            }
        }
        s.in_flight.push(Statement { worker: w, claim, batch: batch.clone(), awaited: true });
        s.in_flight.sort();
        s.workers[w].phase = Phase::Sent(batch.clone());
    }

    /// Continues after a committed batch.
    pub(super) fn committed(&self, s: &mut State, w: usize, batch: &Batch) {
        let worker = &mut s.workers[w];
        worker.cursor = batch.to;
        (worker.limit, worker.prepared_anew, worker.alone) = (BATCH, false, false);
        worker.phase = worker.ahead.take().map_or(Phase::Ready, Phase::Prepared);
    }

    /// Handles a rejected batch: prepares it again, then halves it, then makes its one webhook a
    /// dead letter.
    pub(super) fn refused(&self, s: &mut State, w: usize, batch: &Batch) {
        let worker = &mut s.workers[w];
        (worker.phase, worker.ahead) = (Phase::Ready, None);
        if !std::mem::replace(&mut worker.prepared_anew, true) || self.is(Mutation::NeverHalved) {
            return;
        }
        if batch.to > batch.first {
            worker.limit = 1;
        } else if self.is(Mutation::RefusedWebhookSkipped) {
            let decisions = vec![Decision::Ignore];
            worker.phase = Phase::Prepared(Batch { decisions, ..batch.clone() });
        } else {
            worker.phase = Phase::Prepared(dead_letter(batch.to));
        }
    }

    /// Reads the cursor row after an unknown result, or a result without a row.
    pub(super) fn read_cursor(&self, s: &mut State, w: usize, batch: &Batch) {
        let is_owner = s.workers[w].claim.is_some_and(|claim| claim.epoch == s.rows.epoch)
            || self.is(Mutation::EpochNotComparedAfterUnknown);
        if is_owner && s.rows.cursor == batch.to {
            self.committed(s, w, batch);
        } else if is_owner && s.rows.cursor == batch.from {
            s.workers[w].phase = Phase::Prepared(batch.clone());
        } else {
            self.give_up(s, w);
        }
    }
}

fn dead_letter(sequence: u8) -> Batch {
    let decisions = vec![Decision::DeadLetter];
    Batch { from: sequence - 1, first: sequence, to: sequence, decisions }
}
