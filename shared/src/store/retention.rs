//! What nobody needs any more, deleted in bounded steps, so that no statement holds anything for long.

use super::{Store, StoreError};
use sqlx::Row;
use std::time::Duration;

/// Rows of one table that one step deletes at most.
const STEP: i64 = 10_000;

/// How many rows of each a step deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs)] // the tables' names
pub struct Forgotten {
    pub seen: u64,
    pub lanes: u64,
    pub outbox: u64,
    pub dead: u64,
    pub workers: u64,
    pub replays: u64,
}

/// What Postgres holds of webhooks that are not over.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Standing {
    /// Lanes set aside.
    pub parked_lanes: i64,
    /// Webhooks set aside.
    pub parked: i64,
    /// How long the one set aside first waits.
    pub parked_oldest: Duration,
    /// Webhooks given up that nobody decided about.
    pub dead: i64,
    /// What is still to be said.
    pub unsaid: i64,
    /// How long the oldest of that waits.
    pub unsaid_oldest: Duration,
}

impl Store {
    /// How many webhooks wait, and how many are dead.
    pub async fn standing(&self) -> Result<Standing, StoreError> {
        let row = sqlx::query(
            "-- retention.standing
             select (select count(*) from lanes where parked_at is not null) as parked_lanes,
                    (select count(*) from lane_backlog) as parked,
                    (select greatest(coalesce(extract(epoch from now() - min(parked_at)), 0), 0)::float8
                       from lane_backlog) as parked_oldest,
                    (select count(*) from dead) as dead,
                    (select count(*) from outbox where state in ('pending', 'sending')) as unsaid,
                    (select greatest(coalesce(extract(epoch from now() - min(created_at)), 0), 0)::float8
                       from outbox where state in ('pending', 'sending')) as unsaid_oldest",
        )
        .fetch_one(&self.pool)
        .await?;
        Ok(Standing {
            parked_lanes: row.try_get("parked_lanes")?,
            parked: row.try_get("parked")?,
            parked_oldest: Duration::from_secs_f64(row.try_get("parked_oldest")?),
            dead: row.try_get("dead")?,
            unsaid: row.try_get("unsaid")?,
            unsaid_oldest: Duration::from_secs_f64(row.try_get("unsaid_oldest")?),
        })
    }

    /// Deletes a step's worth: `seen` after 48 h (Slack sends an event again for a day), but nothing
    /// that may be read again because something before it is not finished; lanes whose last webhook lies
    /// below their partition's cursor, settled outbox rows, the dead and replays after 30 days, workers silent for an hour.
    pub async fn forget(&self) -> Result<Forgotten, StoreError> {
        let run = async |sql: &'static str| -> Result<u64, StoreError> {
            Ok(sqlx::query(sql).bind(STEP).execute(&self.pool).await?.rows_affected())
        };
        Ok(Forgotten {
            seen: run("-- retention.seen
                delete from seen where ctid = any (array (
                    select ctid from seen
                     where at < least(now() - interval '48 hours',
                                      (select min(cursor_at) from partition_leases) - interval '5 minutes',
                                      (select min(coalesce(stored_at, parked_at)) from lane_backlog) - interval '5 minutes')
                     limit $1))")
            .await?,
            lanes: run("-- retention.lanes
                delete from lanes where ctid = any (array (
                    select l.ctid from lanes l join partition_leases p using (partition)
                     where l.parked_at is null and (l.generation < p.generation or l.last_seq <= p.cursor) limit $1
                       for update of l skip locked))")
            .await?,
            outbox: run("-- retention.outbox
                delete from outbox where ctid = any (array (
                    select ctid from outbox
                     where state in ('sent', 'failed') and settled_at < now() - interval '30 days' limit $1))")
            .await?,
            dead: run("-- retention.dead
                delete from dead where ctid = any (array (
                    select ctid from dead where at < now() - interval '30 days' limit $1))")
            .await?,
            workers: run("-- retention.workers
                delete from workers where ctid = any (array (
                    select ctid from workers where alive_at < now() - interval '1 hour' limit $1))")
            .await?,
            replays: run("-- retention.replays
                delete from replays where ctid = any (array (
                    select ctid from replays
                     where state <> 'open' and created_at < now() - interval '30 days' limit $1))")
            .await?,
        })
    }

    /// The sequence below which nothing of the stream made at `created_ns` is needed: below every partition's cursor and every
    /// parked webhook whose bytes are not kept here. `None` while some cursor counts in another stream.
    pub async fn needed_from(&self, created_ns: i64) -> Result<Option<u64>, StoreError> {
        let row = sqlx::query(
            "-- retention.needed_from
             select case when (select bool_and(coalesce(stream_created_ns = $1, false)) from partition_leases) then
                        least((select min(cursor) + 1 from partition_leases),
                              (select min(b.sequence) from lane_backlog b join partition_leases p using (partition)
                                where b.generation = p.generation and b.sealed is null)) end as needed_from",
        )
        .bind(created_ns)
        .fetch_one(&self.pool)
        .await?;
        let from: Option<i64> = row.try_get("needed_from")?;
        Ok(from.map(|from| from.max(0) as u64))
    }
}
