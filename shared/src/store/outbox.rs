//! The outbox: what Slack is still to be told. Written with the effects it belongs to, sent by the owner of
//! the partition, in the order of its lane.
//!
//! A row is marked `sending` with the epoch before the call, and until when that call may last. One found `sending` after
//! that was left by somebody who did not come back, ourselves included: it may have been said.

use super::{Owner, Position, Store, StoreError, column, inconsistent};
use crate::{
    codec::envelope::DedupeKey,
    partition::Lane,
    secrets::{KeyRing, Place, Sealed},
    types::{ConnectionId, Outgoing},
};
use sqlx::{PgConnection, Row, postgres::PgRow};
use std::time::Duration;

const TABLE: &str = "outbox";
const COLUMN: &str = "outbox.request";

/// A row whose turn it is.
#[derive(Debug)]
pub struct Queued {
    /// The row.
    pub id: i64,
    /// Its lane: the next row of it comes when this one is settled.
    pub lane: Lane,
    /// Whose tokens to use.
    pub connection: ConnectionId,
    /// The webhook it answers.
    pub dedupe: DedupeKey,
    /// What to say.
    pub outgoing: Outgoing,
    /// How often it was tried before.
    pub attempts: i32,
    /// How long ago it was written.
    pub age: Duration,
    /// Marked `sending` by somebody who did not come back: it may have been said.
    pub in_doubt: bool,
}

/// How a try to send ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendResult {
    /// Said.
    Sent,
    /// Not said; try again after this long.
    Later(Duration, String),
    /// Can't be said, ever.
    Failed(String),
}

pub(super) async fn queue(
    tx: &mut PgConnection,
    ring: &KeyRing,
    owner: &Owner,
    at: &Position,
    outgoing: &Outgoing,
) -> Result<(), StoreError> {
    let connection = at.connection.to_string();
    let clear = serde_json::to_vec(outgoing)
        .map_err(|e| inconsistent(TABLE, "request", at.dedupe.as_str(), e))?;
    let sealed = ring.seal(Place { owner: &connection, column: COLUMN }, &clear)?;
    sqlx::query(
        "-- outbox.queue
         insert into outbox (partition, lane, connection_id, dedupe_key, request) values ($1, $2, $3, $4, $5)",
    )
    .bind(owner.partition.number() as i16)
    .bind(at.lane.to_bits())
    .bind(connection)
    .bind(at.dedupe.as_str())
    .bind(sealed.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

impl Store {
    /// Takes the due heads of a partition's lanes, at most `limit`, and marks them `sending` for `send_timeout`. A row
    /// that can't be read is settled as failed, and holds up neither its lane nor the others.
    pub async fn take_outgoing(
        &self,
        owner: &Owner,
        limit: i64,
        send_timeout: Duration,
    ) -> Result<Vec<Queued>, StoreError> {
        let rows = sqlx::query(
            "-- outbox.take
             with mine as (
                 select 1 from partition_epochs where partition = $1 and owner = $2 and epoch = $3 for share),
             heads as (
                 select distinct on (lane) id, state, epoch, next_at from outbox
                  where partition = $1 and state in ('pending', 'sending') order by lane, id),
             due as (
                 select id, state = 'sending' as in_doubt from heads
                  where next_at <= now() order by id limit $4)
             update outbox o
                set state = 'sending', epoch = $3, attempts = o.attempts + 1, next_at = now() + make_interval(secs => $5)
               from due, mine where o.id = due.id
             returning o.id, o.lane, o.connection_id, o.dedupe_key, o.request, o.attempts - 1 as attempts, extract(epoch from now() - o.created_at)::float8 as age, due.in_doubt",
        )
        .bind(owner.partition.number() as i16)
        .bind(&owner.worker)
        .bind(owner.epoch)
        .bind(limit)
        .bind(send_timeout.as_secs_f64())
        .fetch_all(&self.pool)
        .await?;
        let mut queued = Vec::with_capacity(rows.len());
        for row in &rows {
            match self.queued(row) {
                Ok(row) => queued.push(row),
                Err(error) => {
                    let failed = SendResult::Failed(error.to_string());
                    self.settle_outgoing(owner, row.try_get("id")?, &failed).await?;
                }
            }
        }
        Ok(queued)
    }

    /// Writes down how a try ended, unless somebody else has taken the row since.
    pub async fn settle_outgoing(
        &self,
        owner: &Owner,
        id: i64,
        result: &SendResult,
    ) -> Result<(), StoreError> {
        let (state, after, error) = match result {
            SendResult::Sent => ("sent", Duration::ZERO, ""),
            SendResult::Later(after, error) => ("pending", *after, error.as_str()),
            SendResult::Failed(error) => ("failed", Duration::ZERO, error.as_str()),
        };
        sqlx::query(
            "-- outbox.settle
             update outbox
                set state = $3, next_at = now() + make_interval(secs => $4), last_error = $5,
                    settled_at = case when $3 = 'pending' then null else now() end
              where id = $1 and state = 'sending' and epoch = $2",
        )
        .bind(id)
        .bind(owner.epoch)
        .bind(state)
        .bind(after.as_secs_f64())
        .bind(error)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    fn queued(&self, row: &PgRow) -> Result<Queued, StoreError> {
        let id: i64 = row.try_get("id")?;
        let key = id.to_string();
        let connection: ConnectionId = column(row, TABLE, &key, "connection_id")?;
        let owner = connection.to_string();
        let place = Place { owner: &owner, column: COLUMN };
        let wrong = |why: String| inconsistent(TABLE, "request", &key, why);
        let sealed = Sealed::stored(row.try_get("request")?);
        let clear = self.rings.tokens.open(place, &sealed).map_err(|e| wrong(e.to_string()))?;
        Ok(Queued {
            id,
            lane: Lane::from_bits(row.try_get("lane")?),
            connection,
            dedupe: DedupeKey::stored(row.try_get("dedupe_key")?),
            outgoing: serde_json::from_slice(&clear).map_err(|e| wrong(e.to_string()))?,
            attempts: row.try_get("attempts")?,
            age: Duration::from_secs_f64(row.try_get::<f64, _>("age")?.max(0.0)),
            in_doubt: row.try_get("in_doubt")?,
        })
    }
}
