//! The outbox: what Slack is still to be told. Written with the effects it belongs to, sent by the owner of
//! the partition, in the order of its lane.
//!
//! A row is marked `sending` with the epoch before the call, and until when that call may last. One found `sending` after
//! that was left by somebody who did not come back, ourselves included: it may have been said. So may one whose call
//! ended without an answer; that is kept as `doubtful`. What Slack limits is not taken before its time (see `limits`).

use super::{
    Owner, Position, Store, StoreError, column, inconsistent,
    limits::{gap, gap_forgotten},
    storable,
};
use crate::{
    codec::envelope::{DedupeKey, Word},
    partition::Lane,
    secrets::{KeyRing, Place, Sealed},
    types::{ConnectionId, Outgoing},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
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
    /// The trace of the request that it answers.
    pub traceparent: Option<Word>,
    /// How often it was tried before.
    pub attempts: i32,
    /// How often its webhook's `response_url` was used before, by this row and by others.
    pub uses: i64,
    /// How long ago it was written.
    pub age: Duration,
    /// It may have been said: by somebody who did not come back, or by a call that had no answer.
    pub in_doubt: bool,
}

impl Queued {
    /// What this row is known by in Slack: the same at every try, and of no use to whoever reads it there.
    pub fn mark(&self) -> String {
        let hash: [u8; 32] =
            Sha256::digest(format!("outbox\0{}\0{}", self.dedupe, self.id).as_bytes()).into();
        hash[..16].iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }
}

/// What a partition has to say now.
#[derive(Debug, Default)]
pub struct Taken {
    /// The rows whose turn it is, in the order in which they were written.
    pub rows: Vec<Queued>,
    /// When the next of those may be taken that wait for a limit of Slack's; `None`, if none does.
    pub limited: Option<Duration>,
}

/// A row's request, as it is sealed. A release that knows nothing of traces reads it as well.
#[derive(Serialize, Deserialize)]
struct Request<O> {
    #[serde(flatten)]
    outgoing: O,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    traceparent: Option<String>,
}

/// How a try to send ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendResult {
    /// Said.
    Sent,
    /// Not said; try again after this long.
    Later(Duration, String),
    /// May have been said; look, and maybe try again, after this long.
    Doubtful(Duration, String),
    /// Not even tried; its turn comes after this long. Does not count as a try, and a doubt about it stays.
    Untried(Duration, String),
    /// Can't be said, ever.
    Failed(String),
}

/// A row that was tried, and how that ended.
#[derive(Debug, Clone)]
pub struct Settled {
    /// The row.
    pub id: i64,
    /// The epoch under which it was taken,
    pub epoch: i64,
    /// and how often it had been tried before: who has taken it since tries it once more.
    pub attempts: i32,
    /// How it ended.
    pub result: SendResult,
    /// What is left of the doubt about it.
    pub doubt: Doubt,
}

/// How a try ended, in columns.
struct Written<'a> {
    state: &'static str,
    after: Duration,
    error: &'a str,
    doubtful: bool,
    tried: i32,
}

impl SendResult {
    fn written(&self, doubt: Doubt) -> Written<'_> {
        const NOW: Duration = Duration::ZERO;
        let (state, after, error, doubtful, tried) = match self {
            SendResult::Sent => ("sent", NOW, "", false, 1),
            SendResult::Failed(error) => ("failed", NOW, error.as_str(), false, 1),
            SendResult::Later(after, error) => ("pending", *after, error.as_str(), doubt.open, 1),
            SendResult::Doubtful(after, error) => ("pending", *after, error.as_str(), true, 1),
            SendResult::Untried(after, error) => ("pending", *after, error.as_str(), doubt.open, 0),
        };
        Written { state, after, error, doubtful, tried }
    }
}

/// Something to say, as it rests.
pub(super) fn seal(
    ring: &KeyRing,
    at: &Position,
    outgoing: &Outgoing,
) -> Result<Sealed, StoreError> {
    let connection = at.connection.to_string();
    let traceparent = at.traceparent.as_ref().map(|word| word.as_str().to_owned());
    let clear = serde_json::to_vec(&Request { outgoing, traceparent })
        .map_err(|e| inconsistent(TABLE, "request", at.dedupe.as_str(), e))?;
    Ok(ring.seal(Place { owner: &connection, column: COLUMN }, &clear)?)
}

pub(super) async fn queue(
    tx: &mut PgConnection,
    ring: &KeyRing,
    owner: &Owner,
    at: &Position,
    outgoing: &Outgoing,
) -> Result<(), StoreError> {
    sqlx::query(
        "-- outbox.queue
         insert into outbox (partition, lane, connection_id, dedupe_key, method, request)
         values ($1, $2, $3, $4, $5, $6)",
    )
    .bind(owner.partition.number() as i16)
    .bind(at.lane.to_bits())
    .bind(at.connection.to_string())
    .bind(at.dedupe.as_str())
    .bind(outgoing.to.as_str())
    .bind(seal(ring, at, outgoing)?.as_str())
    .execute(tx)
    .await?;
    Ok(())
}

impl Store {
    /// Takes the due heads of a partition's lanes, at most `limit`, and marks them `sending` for `send_timeout`. What
    /// Slack limits stays; after a limit one at a time is taken, over all workers. A row that can't be read is settled
    /// as failed, and holds up neither its lane nor the others.
    pub async fn take_outgoing(
        &self,
        owner: &Owner,
        limit: i64,
        send_timeout: Duration,
    ) -> Result<Taken, StoreError> {
        let rows = sqlx::query(concat!(
            "-- outbox.take
             with mine as (
                 select 1 from partition_epochs where partition = $1 and owner = $2 and epoch = $3 for share),
             heads as (
                 select distinct on (lane) id, connection_id, method, next_at,
                        state = 'sending' or doubtful as in_doubt
                   from outbox
                  where partition = $1 and state in ('pending', 'sending') order by lane, id),
             due as (
                 select h.id, h.connection_id, h.method, h.in_doubt, l.gap,
                        greatest(l.blocked_until, l.next_at) as free_at,
                        row_number() over (partition by h.connection_id, h.method order by h.id) as turn
                   from heads h
                   left join (select l.*, ",
            gap!(),
            " as gap from slack_limits l) l
                          on l.connection_id = h.connection_id and l.method = h.method
                         and (l.blocked_until > now() or l.gap >= ",
            gap_forgotten!(),
            ")
                  where h.next_at <= now()),
             turns as (
                 update slack_limits l set next_at = now() + make_interval(secs => due.gap)
                   from due, mine
                  where due.turn = 1 and l.connection_id = due.connection_id and l.method = due.method
                    and due.gap is not null and l.blocked_until <= now() and l.next_at <= now()
                 returning due.id),
             picked as (
                 select id, in_doubt from due where gap is null or id in (select id from turns)
                  order by id limit $4),
             taken as (
                 update outbox o
                    set state = 'sending', epoch = $3, attempts = o.attempts + 1,
                        next_at = now() + make_interval(secs => $5)
                   from picked, mine where o.id = picked.id
                 returning o.id, o.lane, o.connection_id, o.dedupe_key, o.request, o.attempts - 1 as attempts,
                           extract(epoch from now() - o.created_at)::float8 as age, picked.in_doubt,
                           case when o.method = 'response_url' then
                               (select sum(u.attempts) from outbox u
                                 where u.dedupe_key = o.dedupe_key and u.method = 'response_url')
                           else 0 end as uses),
             limited as (
                 select min(greatest(gap, extract(epoch from free_at - now())))::float8 as free_in
                   from due where gap is not null and id not in (select id from turns))
             select taken.*, limited.free_in from limited left join taken on true"
        ))
        .bind(owner.partition.number() as i16)
        .bind(&owner.worker)
        .bind(owner.epoch)
        .bind(limit)
        .bind(send_timeout.as_secs_f64())
        .fetch_all(&self.pool)
        .await?;
        let mut taken = Taken::default();
        for row in &rows {
            if let Some(free_in) = row.try_get::<Option<f64>, _>("free_in")? {
                taken.limited = Some(Duration::from_secs_f64(free_in.max(0.0)));
            }
            let Some(id) = row.try_get::<Option<i64>, _>("id")? else { continue };
            match self.queued(row) {
                Ok(row) => taken.rows.push(row),
                Err(error) => {
                    let (result, doubt) = (SendResult::Failed(error.to_string()), Doubt::default());
                    let (epoch, attempts) = (owner.epoch, row.try_get("attempts")?);
                    let failed = Settled { id, epoch, attempts, result, doubt };
                    self.settle_outgoing(&[failed]).await?;
                }
            }
        }
        taken.rows.sort_by_key(|row| row.id);
        Ok(taken)
    }

    /// Writes down how tries ended, but for rows that somebody else has taken since.
    pub async fn settle_outgoing(&self, many: &[Settled]) -> Result<(), StoreError> {
        let each = || many.iter().map(|one| one.result.written(one.doubt));
        sqlx::query(
            "-- outbox.settle
             update outbox o
                set state = u.state, next_at = now() + make_interval(secs => u.after), last_error = u.error,
                    doubtful = u.doubtful, doubts = o.doubts + u.resent, attempts = o.attempts - 1 + u.tried,
                    settled_at = case when u.state = 'pending' then null else now() end
               from unnest($1::bigint[], $2::bigint[], $3::text[], $4::float8[], $5::text[], $6::boolean[], $7::integer[],
                           $8::integer[], $9::integer[])
                        as u (id, epoch, state, after, error, doubtful, resent, tried, attempts)
              where o.id = u.id and o.state = 'sending' and o.epoch = u.epoch and o.attempts = u.attempts + 1",
        )
        .bind(many.iter().map(|one| one.id).collect::<Vec<_>>())
        .bind(many.iter().map(|one| one.epoch).collect::<Vec<_>>())
        .bind(each().map(|written| written.state).collect::<Vec<_>>())
        .bind(each().map(|written| written.after.as_secs_f64()).collect::<Vec<_>>())
        .bind(each().map(|written| storable(written.error)).collect::<Vec<_>>())
        .bind(each().map(|written| written.doubtful).collect::<Vec<_>>())
        .bind(many.iter().map(|one| i32::from(one.doubt.resent)).collect::<Vec<_>>())
        .bind(each().map(|written| written.tried).collect::<Vec<_>>())
        .bind(many.iter().map(|one| one.attempts).collect::<Vec<_>>())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Slack does not let us speak in this conversation: noted at its binding, for people.
    pub async fn note_refused(
        &self,
        connection: ConnectionId,
        channel: &str,
        why: &str,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "-- outbox.note_refused
             update channel_bindings set refused_at = now(), refused_why = $3
              where connection_id = $1 and channel_id = $2",
        )
        .bind(connection.to_string())
        .bind(channel)
        .bind(why)
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
        let request: Request<Outgoing> =
            serde_json::from_slice(&clear).map_err(|e| wrong(e.to_string()))?;
        Ok(Queued {
            id,
            lane: Lane::from_bits(row.try_get("lane")?),
            connection,
            dedupe: DedupeKey::stored(row.try_get("dedupe_key")?),
            outgoing: request.outgoing,
            traceparent: request.traceparent.and_then(Word::new),
            attempts: row.try_get("attempts")?,
            uses: row.try_get("uses")?,
            age: Duration::from_secs_f64(row.try_get::<f64, _>("age")?.max(0.0)),
            in_doubt: row.try_get("in_doubt")?,
        })
    }
}

/// What a try left of the doubt whether a row was said before.
#[derive(Debug, Clone, Copy, Default)]
pub struct Doubt {
    /// It is still open: Slack was not asked, or did not answer.
    pub open: bool,
    /// It was said again though Slack could not be asked. Counted.
    pub resent: bool,
}
