//! The one transaction of a webhook: ownership, doneness, order and effects, together or not at all.
//!
//! In: who commits under which epoch, what position in the stream, and the effects. Out: whether they are in
//! force. A worker whose lease was taken over holds an old epoch and changes nothing. A webhook that is in
//! `seen` is done and changes nothing. A sequence at or below its lane's last, and not in `seen`, would break
//! the order: nothing is changed, and the caller is told.
//!
//! An effect whose result decides what is said (a claim) brings the reply for each result; the result is known
//! only here, so it is picked here.

use super::{
    Change, ClaimResult, ConsumeClaim, Owner, Store, StoreError, changes, claims, outbox,
    owner::{mine, owned},
    session::transaction_in_time,
};
use crate::{
    codec::envelope::{DedupeKey, Word},
    partition::Lane,
    types::{ConnectionId, Outgoing},
};
use sqlx::{PgConnection, Row};
use std::collections::HashSet;

/// What is committed: a webhook of the stream.
#[derive(Debug, Clone)]
pub struct Position {
    /// Its sequence.
    pub sequence: u64,
    /// Its lane.
    pub lane: Lane,
    /// Its connection.
    pub connection: ConnectionId,
    /// Its dedupe key.
    pub dedupe: DedupeKey,
    /// The trace of the request that brought it, for what is said because of it.
    pub traceparent: Option<Word>,
}

/// What handling a webhook changes.
#[derive(Default)]
pub struct Effects {
    /// A claim to consume, with the reply for each result.
    pub consume: Option<ConsumeClaim>,
    /// What else is to change, each with the reply for either result.
    pub changes: Vec<Change>,
    /// What is said, whatever else.
    pub say: Vec<Outgoing>,
    /// What triggered all of this: a second webhook for the same trigger changes and says nothing.
    pub trigger: Option<DedupeKey>,
    /// The word kept in `seen`: `done`, `dropped`, …
    pub outcome: &'static str,
}

/// What became of a commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Committed {
    /// The effects are in force.
    Applied {
        /// What became of the claim, if there was one.
        claim: Option<ClaimResult>,
    },
    /// It was done before; nothing changed.
    AlreadyDone,
    /// Somebody else owns the partition; nothing changed.
    Fenced,
    /// Its lane is past it; nothing changed.
    OrderSlip,
}

impl Store {
    /// Commits one webhook.
    pub async fn commit(
        &self,
        owner: &Owner,
        at: &Position,
        effects: &Effects,
    ) -> Result<Committed, StoreError> {
        transaction_in_time(self.commit_alone(owner, at, effects)).await
    }

    async fn commit_alone(
        &self,
        owner: &Owner,
        at: &Position,
        effects: &Effects,
    ) -> Result<Committed, StoreError> {
        let mut tx = self.pool.begin().await?;
        match step(&mut tx, owner, at, effects.outcome).await? {
            Step::Taken => {}
            Step::Seen => {
                tx.commit().await?; // it may have been set aside, and is not any more
                return Ok(Committed::AlreadyDone);
            }
            Step::Fenced => {
                tx.rollback().await?;
                return Ok(Committed::Fenced);
            }
            Step::Behind => {
                tx.rollback().await?;
                return Ok(Committed::OrderSlip);
            }
        }
        let claim = self.put_into_force(&mut tx, owner, at, effects).await?;
        tx.commit().await?;
        Ok(Committed::Applied { claim })
    }

    /// Everything a webhook changes but its own place.
    pub(super) async fn put_into_force(
        &self,
        tx: &mut PgConnection,
        owner: &Owner,
        at: &Position,
        effects: &Effects,
    ) -> Result<Option<ClaimResult>, StoreError> {
        if !first_of_trigger(&mut *tx, owner, at, effects).await? {
            return Ok(None);
        }
        let mut say = effects.say.clone();
        let mut result = None;
        if let Some(claim) = &effects.consume {
            let became = claims::consume(&mut *tx, claim, &at.dedupe).await?;
            say.extend((claim.reply)(&became));
            result = Some(became);
        }
        for change in &effects.changes {
            say.extend((change.reply)(changes::apply(&mut *tx, &change.what).await?));
        }
        for outgoing in &say {
            outbox::queue(&mut *tx, &self.rings.tokens, owner, at, outgoing).await?;
        }
        Ok(result)
    }

    /// Whether a webhook (or a trigger) is done, before something outside is called for it.
    pub async fn is_seen(&self, scope: &str, key: &DedupeKey) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "-- seen.get\n select 1 as one from seen where scope = $1 and dedupe_key = $2",
        )
        .bind(scope)
        .bind(key.as_str())
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.is_some())
    }

    /// Which of these webhooks of the live flow are done.
    ///
    /// A look into the index for each: with `= any` Postgres read all of the scope's rows while it had no statistics.
    pub async fn seen_of(&self, keys: &[DedupeKey]) -> Result<HashSet<DedupeKey>, StoreError> {
        let keys: Vec<&str> = keys.iter().map(DedupeKey::as_str).collect();
        let seen: Vec<String> = sqlx::query_scalar(
            "-- seen.get_many
             select k.key from unnest($2::text[]) as k (key),
                    lateral (select from seen where scope = $1 and dedupe_key = k.key limit 1) as done",
        )
        .bind(super::LIVE)
        .bind(keys)
        .fetch_all(&self.pool)
        .await?;
        Ok(seen.into_iter().map(DedupeKey::stored).collect())
    }
}

/// Whether this is the first webhook of its trigger; notes that it is.
async fn first_of_trigger(
    tx: &mut PgConnection,
    owner: &Owner,
    at: &Position,
    effects: &Effects,
) -> Result<bool, StoreError> {
    let Some(trigger) = &effects.trigger else { return Ok(true) };
    let inserted = owned(
        "-- seen.trigger
         insert into seen (scope, dedupe_key, generation, partition, sequence, lane, outcome, worker)
         values ($4, $6, $5, $1, $7, $8, 'trigger', $2) on conflict do nothing",
        owner,
    )
    .bind(trigger.as_str())
    .bind(at.sequence as i64)
    .bind(at.lane.to_bits())
    .execute(tx)
    .await?;
    Ok(inserted.rows_affected() == 1)
}

/// What the statement that everything hangs on found.
pub(super) enum Step {
    Taken,
    Seen,
    Fenced,
    Behind,
}

/// Checks ownership, notes the webhook as seen, moves its lane, and takes it off what is set aside, in one round trip.
/// [`Step::Fenced`] and [`Step::Behind`] have to be rolled back.
pub(super) async fn step(
    tx: &mut PgConnection,
    owner: &Owner,
    at: &Position,
    outcome: &str,
) -> Result<Step, StoreError> {
    let row = owned(
        concat!(
            "-- commit.step\n",
            mine!(),
            ", noted as (
                 insert into seen (scope, dedupe_key, generation, partition, sequence, lane, outcome, worker)
                 select $4, $6, $5, $1, $7, $8, $9, $2 from mine on conflict do nothing returning 1),
             moved as (
                 insert into lanes (scope, generation, lane, partition, last_seq)
                 select $4, $5, $8, $1, $7 from noted
                 on conflict (scope, generation, lane) do update set last_seq = excluded.last_seq
                  where lanes.last_seq < excluded.last_seq returning 1),
             worked_off as (
                 delete from lane_backlog using mine
                  where scope = $4 and generation = $5 and lane = $8 and sequence = $7)
             select exists (select from mine) as mine, exists (select from noted) as noted,
                    exists (select from moved) as moved"
        ),
        owner,
    )
    .bind(at.dedupe.as_str())
    .bind(at.sequence as i64)
    .bind(at.lane.to_bits())
    .bind(outcome)
    .fetch_one(tx)
    .await?;
    let found: (bool, bool, bool) =
        (row.try_get("mine")?, row.try_get("noted")?, row.try_get("moved")?);
    Ok(match found {
        (false, _, _) => Step::Fenced,
        (true, false, _) => Step::Seen,
        (true, true, false) => Step::Behind,
        (true, true, true) => Step::Taken,
    })
}
