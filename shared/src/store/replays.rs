//! Replays: a stretch of a connection's webhooks, handled once more.
//!
//! In: what an operator asks for. Out: a row that some worker leases, as partitions are leased, and results by webhook.
//! With effects it commits in a scope of its own: `seen` and lanes of the live flow are not asked and not touched, and a
//! replay that is taken up by another worker does nothing twice.

use super::{Owner, Store, StoreError, column, moment};
use crate::types::ConnectionId;
use serde::Serialize;
use sqlx::{Row, postgres::PgRow};
use std::time::Duration;
use time::OffsetDateTime;

const TABLE: &str = "replays";

/// What an operator asks for.
#[derive(Debug)]
pub struct NewReplay {
    /// Its name among the scopes: `replay:…`.
    pub scope: String,
    /// Whose webhooks.
    pub connection: ConnectionId,
    /// Those that the stream got at this time or later,
    pub from: OffsetDateTime,
    /// and before this.
    pub to: OffsetDateTime,
    /// With effects; else what would be is recorded.
    pub apply: bool,
}

/// A replay, leased.
#[derive(Debug, Clone)]
pub struct Replay {
    /// Its scope.
    pub scope: String,
    /// Whose webhooks.
    pub connection: ConnectionId,
    /// From when on.
    pub from: OffsetDateTime,
    /// Up to when.
    pub to: OffsetDateTime,
    /// With effects.
    pub apply: bool,
    /// Everything up to this sequence was handled.
    pub cursor: u64,
    /// The epoch it is held under.
    pub epoch: i64,
}

/// How a replay stands.
#[derive(Debug, Clone, Serialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct ReplayState {
    pub scope: String,
    pub apply: bool,
    pub state: String,
    pub note: String,
    pub total: Option<i64>,
    pub handled: i64,
    pub owner: Option<String>,
}

/// What became, or would have become, of a webhook.
#[derive(Debug, Clone, Serialize)]
pub struct Replayed {
    /// Its sequence.
    pub sequence: i64,
    /// When the stream got it.
    pub stored_at: Option<String>,
    /// What sort it is.
    pub kind: String,
    /// How handling ended.
    pub outcome: String,
    /// What was, or would be, changed, said and called.
    pub effects: Vec<String>,
}

impl Store {
    /// Asks for a replay. False: there is one of that scope already, and it is left as it is.
    pub async fn ask_replay(&self, new: &NewReplay) -> Result<bool, StoreError> {
        let asked = sqlx::query(
            "-- replays.ask
             insert into replays (scope, connection_id, from_time, to_time, apply) values ($1, $2, $3, $4, $5)
             on conflict do nothing",
        )
        .bind(&new.scope)
        .bind(new.connection.to_string())
        .bind(new.from)
        .bind(new.to)
        .bind(new.apply)
        .execute(&self.pool)
        .await?;
        Ok(asked.rows_affected() == 1)
    }

    /// Leases a replay that nobody works, if there is one.
    pub async fn claim_replay(
        &self,
        worker: &str,
        ttl: Duration,
    ) -> Result<Option<Replay>, StoreError> {
        let row = sqlx::query(
            "-- replays.claim
             update replays
                set owner = $1, epoch = epoch + 1, lease_until = clock_timestamp() + make_interval(secs => $2)
              where scope = (select scope from replays where state = 'open' and lease_until < clock_timestamp()
                              order by created_at limit 1 for update skip locked)
             returning scope, connection_id, from_time, to_time, apply, cursor, epoch",
        )
        .bind(worker)
        .bind(ttl.as_secs_f64())
        .fetch_optional(&self.leases)
        .await?;
        row.map(|row| {
            let scope: String = row.try_get("scope")?;
            Ok(Replay {
                connection: column(&row, TABLE, &scope, "connection_id")?,
                from: row.try_get("from_time")?,
                to: row.try_get("to_time")?,
                apply: row.try_get("apply")?,
                cursor: row.try_get::<i64, _>("cursor")? as u64,
                epoch: row.try_get("epoch")?,
                scope,
            })
        })
        .transpose()
    }

    /// Renews a replay's lease and tells about how many webhooks it has. False: it is somebody else's, or was cancelled.
    pub async fn renew_replay(
        &self,
        replay: &Replay,
        total: Option<u64>,
        ttl: Duration,
    ) -> Result<bool, StoreError> {
        let renewed = sqlx::query(
            "-- replays.renew
             update replays
                set lease_until = clock_timestamp() + make_interval(secs => $3), total = coalesce(total, $4)
              where scope = $1 and epoch = $2 and state = 'open'",
        )
        .bind(&replay.scope)
        .bind(replay.epoch)
        .bind(ttl.as_secs_f64())
        .bind(total.map(|total| total as i64))
        .execute(&self.leases)
        .await?;
        Ok(renewed.rows_affected() == 1)
    }

    /// Notes what became of a webhook of a replay, and moves its cursor. False: it is somebody else's, or was cancelled.
    pub async fn note_replayed(
        &self,
        owner: &Owner,
        stored_at: OffsetDateTime,
        replayed: &Replayed,
    ) -> Result<bool, StoreError> {
        let row = sqlx::query(
            "-- replays.note
             with mine as (
                 update replays set cursor = greatest(cursor, $3)
                  where scope = $1 and epoch = $2 and state = 'open' returning 1),
             noted as (
                 insert into replay_results (scope, sequence, stored_at, kind, outcome, effects)
                 select $1, $3, $4, $5, $6, $7 from mine
                 on conflict (scope, sequence) do update set outcome = excluded.outcome, effects = excluded.effects)
             select exists (select from mine) as mine",
        )
        .bind(owner.scope.as_ref())
        .bind(owner.epoch)
        .bind(replayed.sequence)
        .bind(stored_at)
        .bind(&replayed.kind)
        .bind(&replayed.outcome)
        .bind(&replayed.effects)
        .fetch_one(&self.pool)
        .await?;
        Ok(row.try_get("mine")?)
    }

    /// Ends a replay: well, or with what went wrong.
    pub async fn end_replay(
        &self,
        replay: &Replay,
        result: Result<(), &str>,
    ) -> Result<(), StoreError> {
        let (state, note) = match result {
            Ok(()) => ("done", ""),
            Err(why) => ("failed", why),
        };
        sqlx::query(
            "-- replays.end
             update replays set state = $3, note = $4, lease_until = '-infinity'
              where scope = $1 and epoch = $2 and state = 'open'",
        )
        .bind(&replay.scope)
        .bind(replay.epoch)
        .bind(state)
        .bind(note)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Calls a replay off, wherever it is.
    pub async fn cancel_replay(&self, scope: &str) -> Result<(), StoreError> {
        sqlx::query(
            "-- replays.cancel
             update replays set state = 'cancelled', epoch = epoch + 1 where scope = $1 and state = 'open'",
        )
        .bind(scope)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// How a replay stands.
    pub async fn replay_state(&self, scope: &str) -> Result<ReplayState, StoreError> {
        let row = sqlx::query(
            "-- replays.state
             select scope, apply, state, note, total, owner,
                    (select count(*) from replay_results r where r.scope = replays.scope) as handled
               from replays where scope = $1",
        )
        .bind(scope)
        .fetch_optional(&self.pool)
        .await?;
        let row = row.ok_or_else(|| StoreError::Missing(scope.to_owned()))?;
        Ok(ReplayState {
            scope: row.try_get("scope")?,
            apply: row.try_get("apply")?,
            state: row.try_get("state")?,
            note: row.try_get("note")?,
            total: row.try_get("total")?,
            handled: row.try_get("handled")?,
            owner: row.try_get("owner")?,
        })
    }

    /// What became of a replay's webhooks after a sequence, in order, at most `limit`.
    pub async fn replayed(
        &self,
        scope: &str,
        after: i64,
        limit: i64,
    ) -> Result<Vec<Replayed>, StoreError> {
        let rows = sqlx::query(
            "-- replays.results
             select sequence, stored_at, kind, outcome, effects from replay_results
              where scope = $1 and sequence > $2 order by sequence limit $3",
        )
        .bind(scope)
        .bind(after)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(replayed).collect()
    }
}

fn replayed(row: &PgRow) -> Result<Replayed, StoreError> {
    let sequence: i64 = row.try_get("sequence")?;
    Ok(Replayed {
        sequence,
        stored_at: moment(row, "replay_results", &sequence.to_string(), "stored_at")?,
        kind: row.try_get("kind")?,
        outcome: row.try_get("outcome")?,
        effects: row.try_get("effects")?,
    })
}
