//! Replays: a range of a connection's webhooks, processed again by a worker.
//!
//! An operator creates a replay. A worker leases it, as partitions are leased, and records a result
//! per webhook. A claim raises the epoch, so that a worker that lost its lease records and enqueues
//! nothing.

use crate::domain::{Actor, ConnectionId, OrgId};
use crate::store::{
    AuditAction, AuditOrg, NewAuditEntry, Store, StoreError, add_audit_entries, column,
    replace_nul, timestamp,
};
use serde::{Serialize, Serializer, ser::Error as _};
use sqlx::{Row, postgres::PgRow};
use std::time::Duration;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

const TABLE: &str = "replays";

/// Leased replay.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Id.
    pub id: String,
    /// Connection.
    pub connection: ConnectionId,
    /// Earliest time at which the stream stored the webhooks.
    pub from: OffsetDateTime,
    /// End of the range, exclusive.
    pub to: OffsetDateTime,
    /// True if deliveries are enqueued.
    pub apply: bool,
    /// Sequence up to which everything is decided.
    pub cursor: u64,
    /// Fencing token.
    pub epoch: i64,
}

/// State of a replay.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct ReplayState {
    pub id: String,
    pub connection: ConnectionId,
    pub from: Option<String>,
    pub to: Option<String>,
    pub apply: bool,
    /// `open`, `done`, `failed` or `cancelled`.
    pub state: String,
    pub note: String,
    /// Approximate number of webhooks. `None` before a worker has counted them.
    pub total: Option<i64>,
    /// Number of decided webhooks.
    pub decided: i64,
    pub worker: Option<String>,
    pub created_at: Option<String>,
}

/// Result of a webhook in a replay.
#[derive(Debug, Clone, Serialize)]
pub struct ReplayResult {
    /// Sequence.
    pub sequence: u64,
    /// Time at which the stream stored the webhook.
    #[serde(serialize_with = "rfc3339")]
    pub stored_at: OffsetDateTime,
    /// Kind.
    pub kind: String,
    /// Decision.
    pub outcome: String,
    /// Effects, which were applied or would be.
    pub effects: Vec<String>,
}

fn rfc3339<S: Serializer>(at: &OffsetDateTime, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&at.format(&Rfc3339).map_err(S::Error::custom)?)
}

impl Store {
    /// Leases the oldest open replay with an expired lease, of a connection without another leased
    /// one.
    pub async fn claim_replay(
        &self,
        worker: &str,
        ttl: Duration,
    ) -> Result<Option<Replay>, StoreError> {
        let row = sqlx::query(
            "-- replays.claim
             update replays
                set worker = $1, epoch = epoch + 1,
                    lease_until = clock_timestamp() + make_interval(secs => $2)
              where id = (select id from replays p where state = 'open'
                             and lease_until < clock_timestamp()
                             and not exists (select from replays o
                                              where o.connection_id = p.connection_id
                                                and o.state = 'open'
                                                and o.lease_until >= clock_timestamp())
                           order by created_at, id limit 1 for update skip locked)
             returning id, connection_id, from_time, to_time, apply, cursor, epoch",
        )
        .bind(worker)
        .bind(ttl.as_secs_f64())
        .fetch_optional(&self.leases)
        .await?;
        row.map(|row| {
            let id: String = row.try_get("id")?;
            Ok(Replay {
                connection: column(&row, TABLE, &id, "connection_id")?,
                from: row.try_get("from_time")?,
                to: row.try_get("to_time")?,
                apply: row.try_get("apply")?,
                cursor: row.try_get::<i64, _>("cursor")? as u64,
                epoch: row.try_get("epoch")?,
                id,
            })
        })
        .transpose()
    }

    /// Renews the lease of a replay, and records its approximate number of webhooks unless known.
    /// Returns false if another worker has it or it was cancelled.
    pub async fn renew_replay(
        &self,
        replay: &Replay,
        total: Option<u64>,
        ttl: Duration,
    ) -> Result<bool, StoreError> {
        let renewed = sqlx::query(
            "-- replays.renew
             update replays
                set lease_until = clock_timestamp() + make_interval(secs => $3),
                    total = coalesce(total, $4)
              where id = $1 and epoch = $2 and state = 'open'",
        )
        .bind(&replay.id)
        .bind(replay.epoch)
        .bind(ttl.as_secs_f64())
        .bind(total.map(|total| total as i64))
        .execute(&self.leases)
        .await?;
        Ok(renewed.rows_affected() == 1)
    }

    /// Records the approximate number of undecided webhooks, unless the total is known.
    pub async fn count_replay(&self, replay: &Replay, left: u64) -> Result<(), StoreError> {
        sqlx::query(
            "-- replays.count
             update replays
                set total = coalesce(total, $3 + (select count(*) from replay_results r
                                                   where r.replay = replays.id))
              where id = $1 and epoch = $2",
        )
        .bind(&replay.id)
        .bind(replay.epoch)
        .bind(left as i64)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Records the result of a webhook, and moves the replay's cursor. Idempotent. Returns false if
    /// another worker has the replay or it was cancelled.
    pub async fn record_replay_result(
        &self,
        replay: &Replay,
        result: &ReplayResult,
    ) -> Result<bool, StoreError> {
        let fenced = sqlx::query_scalar(
            "-- replays.record
             with fence as (
                 update replays set cursor = greatest(cursor, $3)
                  where id = $1 and epoch = $2 and state = 'open'
                    and lease_until > clock_timestamp() returning 1),
             recorded as (
                 insert into replay_results (replay, sequence, stored_at, kind, outcome, effects)
                 select $1, $3, $4, $5, $6, $7 from fence
                 on conflict (replay, sequence) do update set outcome = excluded.outcome,
                    effects = excluded.effects)
             select exists (select from fence)",
        )
        .bind(&replay.id)
        .bind(replay.epoch)
        .bind(result.sequence as i64)
        .bind(result.stored_at)
        .bind(&result.kind)
        .bind(&result.outcome)
        .bind(result.effects.iter().map(|effect| replace_nul(effect)).collect::<Vec<_>>());
        Ok(fenced.fetch_one(&self.pool).await?)
    }

    /// Ends a replay: done, or failed with the reason.
    pub async fn end_replay(
        &self,
        replay: &Replay,
        result: Result<(), &str>,
    ) -> Result<(), StoreError> {
        let (state, note) = result.map_or_else(|why| ("failed", why), |()| ("done", ""));
        sqlx::query(
            "-- replays.end
             update replays set state = $3, note = $4, lease_until = '-infinity'
              where id = $1 and epoch = $2 and state = 'open'",
        )
        .bind(&replay.id)
        .bind(replay.epoch)
        .bind(state)
        .bind(replace_nul(note))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Cancels an open replay. Its enqueued deliveries stay. Returns false if there is none.
    pub async fn cancel_replay(&self, by: &Actor, id: &str) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let cancelled = sqlx::query(
            "-- replays.cancel
             update replays set state = 'cancelled', epoch = epoch + 1 where id = $1
                and state = 'open' returning connection_id",
        )
        .bind(id)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = cancelled else { return Ok(false) };
        let org = AuditOrg::OfConnection(column(&row, TABLE, id, "connection_id")?);
        let entry = NewAuditEntry::new(AuditAction::ReplayCancel, id, org)
            .before(serde_json::json!({ "state": "open" }))
            .after(serde_json::json!({ "state": "cancelled" }));
        add_audit_entries(&mut tx, by, &[entry]).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Returns one replay, or the newest, at most `limit`.
    pub async fn replays(
        &self,
        only: Option<&str>,
        limit: i64,
    ) -> Result<Vec<ReplayState>, StoreError> {
        let rows = sqlx::query(
            "-- replays.list
             select id, connection_id, from_time, to_time, apply, state, note, total, worker,
                    created_at, (select count(*) from replay_results r
                                  where r.replay = replays.id) as decided
               from replays where $1::text is null or id = $1 order by created_at desc limit $2",
        )
        .bind(only)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(state).collect()
    }

    /// Returns replays after `after`, newest first, of all organizations or one, at most `limit`.
    pub async fn replays_page(
        &self,
        org: Option<&OrgId>,
        after: Option<(&str, &str)>,
        limit: i64,
    ) -> Result<Vec<ReplayState>, StoreError> {
        let rows = sqlx::query(
            "-- replays.page
             select p.id, p.connection_id, p.from_time, p.to_time, p.apply, p.state, p.note,
                    p.total, p.worker, p.created_at,
                    (select count(*) from replay_results r where r.replay = p.id) as decided
               from replays p join connections c on c.id = p.connection_id
              where ($1::text is null or c.org_id = $1)
                and ($2::text is null or (p.created_at, p.id) < ($2::timestamptz, $3))
              order by p.created_at desc, p.id desc limit $4",
        )
        .bind(org.map(OrgId::as_str))
        .bind(after.map(|(at, _)| at))
        .bind(after.map(|(_, id)| id))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(state).collect()
    }

    /// Returns the results of a replay after a sequence, in order, at most `limit`.
    pub async fn replay_results(
        &self,
        id: &str,
        after: u64,
        limit: i64,
    ) -> Result<Vec<ReplayResult>, StoreError> {
        let rows = sqlx::query(
            "-- replays.results
             select sequence, stored_at, kind, outcome, effects from replay_results
              where replay = $1 and sequence > $2 order by sequence limit $3",
        )
        .bind(id)
        .bind(after as i64)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(ReplayResult {
                    sequence: row.try_get::<i64, _>("sequence")? as u64,
                    stored_at: row.try_get("stored_at")?,
                    kind: row.try_get("kind")?,
                    outcome: row.try_get("outcome")?,
                    effects: row.try_get("effects")?,
                })
            })
            .collect()
    }
}

fn state(row: &PgRow) -> Result<ReplayState, StoreError> {
    let id: String = row.try_get("id")?;
    Ok(ReplayState {
        connection: column(row, TABLE, &id, "connection_id")?,
        from: timestamp(row, TABLE, &id, "from_time")?,
        to: timestamp(row, TABLE, &id, "to_time")?,
        apply: row.try_get("apply")?,
        state: row.try_get("state")?,
        note: row.try_get("note")?,
        total: row.try_get("total")?,
        decided: row.try_get("decided")?,
        worker: row.try_get("worker")?,
        created_at: timestamp(row, TABLE, &id, "created_at")?,
        id,
    })
}
