//! The dead: webhooks given up on, with why, and with their bytes, until a person decides.

use super::{
    Committed, Effects, Kept, Owner, Position, Store, StoreError, moment,
    owner::{mine, owned},
    session::transaction_in_time,
    storable,
};
use crate::{
    partition::Partition,
    secrets::{Place, Sealed},
    types::ConnectionId,
};
use serde::Serialize;
use sqlx::{
    Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use std::time::Duration;

const TABLE: &str = "dead";
const COLUMN: &str = "dead.sealed";

/// A webhook about to be given up on.
#[derive(Debug)]
pub struct Dying<'a> {
    /// Its sequence.
    pub sequence: u64,
    /// Its subject, whatever that is.
    pub subject: &'a str,
    /// Its headers, as they lie in the stream.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: &'a [u8],
    /// What it is to be found by; absent when it could not be read.
    pub connection: Option<String>,
    /// Its dedupe key, likewise.
    pub dedupe: Option<String>,
    /// A copy of it that comes later is not tried: what is given up is done. Not so for what was never tried and has no
    /// bytes any more: should the stream get it again, it is handled.
    pub for_good: bool,
    /// Why, in a word or sentence that is the same for all of its sort.
    pub reason: &'a str,
    /// What the last try said.
    pub last_error: &'a str,
    /// How often it was tried.
    pub attempts: i32,
}

/// A dead webhook, as an operator sees it.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct DeadWebhook {
    pub id: i64,
    pub partition: i16,
    pub sequence: i64,
    pub subject: String,
    pub connection: Option<String>,
    pub dedupe: Option<String>,
    pub reason: String,
    pub last_error: String,
    pub attempts: i32,
    pub at: Option<String>,
    pub redrive_at: Option<String>,
    pub headers: Vec<(String, String)>,
    #[serde(skip)]
    pub body: Vec<u8>,
    /// Why its headers and body can't be opened, if they can't; they are empty then.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreadable: Option<String>,
}

/// Which of the dead are meant. What is left open restricts nothing.
#[derive(Debug, Clone, Default)]
pub struct DeadChoice {
    /// These rows.
    pub ids: Option<Vec<i64>>,
    /// Those of this connection.
    pub connection: Option<ConnectionId>,
    /// Those whose reason holds this text.
    pub reason: Option<String>,
}

/// What a choice means, in a statement that [`choosing`] makes.
macro_rules! chosen {
    () => {
        "(($1::bigint[] is null or id = any ($1)) and ($2::text is null or connection_id = $2)
           and ($3::text is null or position($3 in reason) > 0))"
    };
}

/// A statement whose first three parameters say which of the dead are meant.
fn choosing<'q>(sql: &'static str, choice: &'q DeadChoice) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql)
        .bind(&choice.ids)
        .bind(choice.connection.map(|id| id.to_string()))
        .bind(&choice.reason)
}

impl Store {
    /// Gives a webhook up: writes it among the dead, under the owner's epoch. False when somebody else owns the
    /// partition; then nothing changed. Running twice leaves one row.
    pub async fn bury(&self, owner: &Owner, dying: &Dying<'_>) -> Result<bool, StoreError> {
        let subject = storable(dying.subject);
        let place = Place { owner: &subject, column: COLUMN };
        let kept = Kept { headers: dying.headers.clone(), body: dying.body.to_vec() };
        let sealed = kept.seal(&self.rings.tokens, place)?;
        let row = owned(
            concat!(
                "-- dead.bury\n",
                mine!(),
                ", buried as (
                     insert into dead (scope, generation, partition, sequence, subject, connection_id, dedupe_key,
                                       reason, last_error, attempts, sealed)
                     select $4, $5, $1, $6, $7, $8, $9, $10, $11, $12, $13 from mine on conflict do nothing returning 1),
                 noted as (
                     insert into seen (scope, dedupe_key, generation, partition, sequence, lane, outcome, worker)
                     select $4, $9, $5, $1, $6, 0, 'dead', $2 from buried where $9::text is not null and $14
                     on conflict do nothing),
                 worked_off as (
                     delete from lane_backlog using mine
                      where scope = $4 and generation = $5 and partition = $1 and sequence = $6)
                 select exists (select from mine) as mine"
            ),
            owner,
        )
        .bind(dying.sequence as i64)
        .bind(&*subject)
        .bind(dying.connection.as_deref().map(storable))
        .bind(dying.dedupe.as_deref().map(storable))
        .bind(storable(dying.reason))
        .bind(storable(dying.last_error))
        .bind(dying.attempts)
        .bind(sealed.as_str())
        .bind(dying.for_good)
        .fetch_one(&self.pool)
        .await?;
        Ok(row.try_get("mine")?)
    }

    /// The dead, newest first, at most `limit`.
    pub async fn dead(&self, limit: i64) -> Result<Vec<DeadWebhook>, StoreError> {
        self.dead_among(&DeadChoice::default(), limit).await
    }

    /// The dead that are meant, newest first, at most `limit`.
    pub async fn dead_among(
        &self,
        choice: &DeadChoice,
        limit: i64,
    ) -> Result<Vec<DeadWebhook>, StoreError> {
        let rows = choosing(
            concat!(
                "-- dead.list
                 select id, partition, sequence, subject, connection_id, dedupe_key, reason, last_error, attempts,
                        sealed, at, redrive_at
                   from dead where ",
                chosen!(),
                " order by id desc limit $4"
            ),
            choice,
        )
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| self.dead_webhook(row)).collect()
    }

    /// How many of the dead are meant.
    pub async fn count_dead(&self, choice: &DeadChoice) -> Result<i64, StoreError> {
        let row = choosing(
            concat!("-- dead.count\n select count(*) as count from dead where ", chosen!()),
            choice,
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(row.try_get("count")?)
    }

    /// Asks for one more try of the dead that are meant; gives their ids. The owner of their partition takes it from there.
    pub async fn ask_redrive(&self, choice: &DeadChoice) -> Result<Vec<i64>, StoreError> {
        let rows = choosing(
            concat!(
                "-- dead.ask_redrive
                 update dead set redrive_at = now() where scope = 'live' and ",
                chosen!(),
                " returning id"
            ),
            choice,
        )
        .fetch_all(&self.pool)
        .await?;
        let mut ids = ids_of(&rows)?;
        ids.sort_unstable();
        Ok(ids)
    }

    /// Of these, those that are still dead, and whether one more try of each is still to come.
    pub async fn redrives(&self, ids: &[i64]) -> Result<Vec<(i64, bool)>, StoreError> {
        let rows = sqlx::query(
            "-- dead.redrives
             select id, redrive_at is not null as waits from dead where id = any ($1) order by id",
        )
        .bind(ids)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| Ok((row.try_get("id")?, row.try_get("waits")?))).collect()
    }

    /// Which of these partitions have something to redrive now.
    pub async fn partitions_to_redrive(
        &self,
        held: &[Partition],
    ) -> Result<Vec<Partition>, StoreError> {
        let held: Vec<i16> = held.iter().map(|p| p.number() as i16).collect();
        let due: Vec<i16> = sqlx::query_scalar(
            "-- dead.partitions_to_redrive
             select distinct partition from dead where redrive_at <= now() and partition = any ($1)",
        )
        .bind(held)
        .fetch_all(&self.leases)
        .await?;
        Ok(due
            .into_iter()
            .filter_map(|p| Partition::try_from(u16::try_from(p).ok()?).ok())
            .collect())
    }

    /// The dead of a partition that are to be redriven now, oldest first, at most `limit`.
    pub async fn to_redrive(
        &self,
        owner: &Owner,
        limit: i64,
    ) -> Result<Vec<DeadWebhook>, StoreError> {
        let rows = sqlx::query(
            "-- dead.to_redrive
             select id, partition, sequence, subject, connection_id, dedupe_key, reason, last_error, attempts, sealed,
                    at, redrive_at
               from dead where scope = $2 and partition = $1 and redrive_at <= now() order by id limit $3",
        )
        .bind(owner.partition.number() as i16)
        .bind(owner.scope.as_ref())
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| self.dead_webhook(row)).collect()
    }

    /// Commits a redriven webhook: it is dead no more, but done, and its effects are in force, past its lane's order.
    pub async fn commit_redriven(
        &self,
        owner: &Owner,
        dead: i64,
        at: &Position,
        effects: &Effects,
    ) -> Result<Committed, StoreError> {
        transaction_in_time(self.commit_alive(owner, dead, at, effects)).await
    }

    async fn commit_alive(
        &self,
        owner: &Owner,
        dead: i64,
        at: &Position,
        effects: &Effects,
    ) -> Result<Committed, StoreError> {
        let mut tx = self.pool.begin().await?;
        let row = owned(
            concat!(
                "-- dead.redriven\n",
                mine!(),
                ", revived as (
                     delete from dead using mine where id = $6 and redrive_at is not null returning sequence),
                 noted as (
                     insert into seen (scope, dedupe_key, generation, partition, sequence, lane, outcome, worker)
                     select $4, $7, $5, $1, sequence, $8, $9, $2 from revived
                     on conflict (scope, dedupe_key)
                     do update set outcome = excluded.outcome, worker = excluded.worker, at = now())
                 select exists (select from mine) as mine, exists (select from revived) as revived"
            ),
            owner,
        )
        .bind(dead)
        .bind(at.dedupe.as_str())
        .bind(at.lane.to_bits())
        .bind(effects.outcome)
        .fetch_one(&mut *tx)
        .await?;
        if !row.try_get::<bool, _>("mine")? {
            tx.rollback().await?;
            return Ok(Committed::Fenced);
        }
        if !row.try_get::<bool, _>("revived")? {
            tx.rollback().await?;
            return Ok(Committed::AlreadyDone); // discarded, or redriven by an owner before us
        }
        let claim = self.put_into_force(&mut tx, owner, at, effects).await?;
        tx.commit().await?;
        Ok(Committed::Applied { claim })
    }

    /// Writes down that a redrive failed: it stays dead, until a person asks again; or, after a while, is tried again.
    pub async fn redrive_failed(
        &self,
        owner: &Owner,
        dead: i64,
        error: &str,
        again_after: Option<Duration>,
    ) -> Result<(), StoreError> {
        owned(
            concat!(
                "-- dead.redrive_failed\n",
                mine!(),
                " update dead
                     set redrive_at = now() + make_interval(secs => $7), last_error = $8,
                         attempts = attempts + case when $7::float8 is null then 1 else 0 end
                    from mine where id = $6 and redrive_at is not null"
            ),
            owner,
        )
        .bind(dead)
        .bind(again_after.map(|after| after.as_secs_f64()))
        .bind(storable(error))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Discards the dead that are meant, for good; gives their ids. Their rows in `seen` stay, so that no copy revives
    /// them; what had no dedupe key gets a row there by its place in the stream, so that it counts as accounted for.
    pub async fn discard_dead(&self, choice: &DeadChoice) -> Result<Vec<i64>, StoreError> {
        let rows = choosing(
            concat!(
                "-- dead.discard
                 with gone as (
                     delete from dead where ",
                chosen!(),
                " returning id, scope, generation, partition, sequence, dedupe_key),
                 noted as (
                     insert into seen (scope, dedupe_key, generation, partition, sequence, lane, outcome, worker)
                     select scope, 'discarded:' || generation || ':' || sequence, generation, partition, sequence, 0,
                            'discarded', 'tidegate'
                       from gone where dedupe_key is null on conflict do nothing)
                 select id from gone order by id"
            ),
            choice,
        )
        .fetch_all(&self.pool)
        .await?;
        ids_of(&rows)
    }

    fn dead_webhook(&self, row: &PgRow) -> Result<DeadWebhook, StoreError> {
        let (id, subject): (i64, String) = (row.try_get("id")?, row.try_get("subject")?);
        let place = Place { owner: &subject, column: COLUMN };
        let sealed = Sealed::stored(row.try_get("sealed")?);
        // One that can't be opened must hide none of the others, nor hold them up.
        let (kept, unreadable) = match Kept::open(&self.rings.tokens, place, &sealed) {
            Ok(kept) => (kept, None),
            Err(why) => (Kept { headers: Vec::new(), body: Vec::new() }, Some(why)),
        };
        Ok(DeadWebhook {
            id,
            partition: row.try_get("partition")?,
            sequence: row.try_get("sequence")?,
            connection: row.try_get("connection_id")?,
            dedupe: row.try_get("dedupe_key")?,
            reason: row.try_get("reason")?,
            last_error: row.try_get("last_error")?,
            attempts: row.try_get("attempts")?,
            at: moment(row, TABLE, &id.to_string(), "at")?,
            redrive_at: moment(row, TABLE, &id.to_string(), "redrive_at")?,
            headers: kept.headers,
            body: kept.body,
            unreadable,
            subject,
        })
    }
}

fn ids_of(rows: &[PgRow]) -> Result<Vec<i64>, StoreError> {
    rows.iter().map(|row| Ok(row.try_get("id")?)).collect()
}
