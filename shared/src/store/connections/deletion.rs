//! Deletion of connections in bounded steps.
//!
//! Deletion starts with the row of the connection, in one statement. A trigger leaves a tombstone,
//! because of which intake ignores later webhooks. Steps then delete the traffic by index. An
//! interrupted deletion can be repeated.

use crate::domain::ConnectionId;
use crate::store::{Store, StoreError, inconsistent};
use serde::Serialize;
use sqlx::{PgExecutor, Row};
use std::time::Duration;
use time::OffsetDateTime;

/// Numbers of deleted rows of a connection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // the tables' names
pub struct DeletedConnection {
    pub bindings: i64,
    pub link_codes: i64,
    pub outbox: i64,
    pub deliveries: i64,
    pub dead_letters: i64,
}

impl Store {
    /// Deletes a connection and its data. Dedup keys are hashes, and are deleted by retention.
    /// [`StoreError::Missing`] for an unknown connection. For a deleted one, deletes traffic that
    /// arrived since.
    pub async fn delete_connection(
        &self,
        id: ConnectionId,
    ) -> Result<DeletedConnection, StoreError> {
        let mut deleted = match delete_row(&self.pool, id).await {
            Err(StoreError::Missing(_)) if self.has_tombstone(id).await? => {
                DeletedConnection::default()
            }
            deleted => deleted?,
        };
        loop {
            let step = self.delete_traffic(id).await?;
            deleted.outbox += step.outbox;
            deleted.deliveries += step.deliveries;
            deleted.dead_letters += step.dead_letters;
            if step.rows == 0 {
                return Ok(deleted);
            }
        }
    }

    /// Deletes a connection's row and those that reference it. Workers delete its traffic.
    pub async fn delete_connection_row(
        &self,
        id: ConnectionId,
    ) -> Result<DeletedConnection, StoreError> {
        delete_row(&self.pool, id).await
    }

    /// Returns connections that were deleted within the last day, and at least `after` ago, whose
    /// webhooks may be in the stream. At most a page.
    pub async fn unpurged_connections(
        &self,
        after: Duration,
    ) -> Result<Vec<ConnectionId>, StoreError> {
        let ids: Vec<String> = sqlx::query_scalar(
            "-- deleted_connections.unpurged
             select id from deleted_connections
              where purged_at is null and deleted_at < now() - make_interval(secs => $1)
                and deleted_at > now() - interval '1 day'
              order by deleted_at limit $2",
        )
        .bind(after.as_secs_f64())
        .bind(LATE_TRAFFIC_PAGE)
        .fetch_all(&self.pool)
        .await?;
        let parse = |id: &String| {
            id.parse().map_err(|error| inconsistent("deleted_connections", "id", id, error))
        };
        ids.iter().map(parse).collect()
    }

    /// Records that the webhooks of a deleted connection were purged from the stream.
    pub async fn record_purged_connection(&self, id: ConnectionId) -> Result<(), StoreError> {
        sqlx::query(
            "-- deleted_connections.record_purged
             update deleted_connections set purged_at = now() where id = $1",
        )
        .bind(id.to_string())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Deletes traffic that arrived for connections after they were deleted within the last day: at
    /// most a step per connection, for a page of them after `after`. Returns the number of rows and
    /// the next page, `None` after the last.
    pub async fn delete_late_traffic(
        &self,
        after: Option<&(OffsetDateTime, String)>,
    ) -> Result<(u64, Option<(OffsetDateTime, String)>), StoreError> {
        let page: Vec<(OffsetDateTime, String, bool)> = sqlx::query_as(LATE_TRAFFIC)
            .bind(after.map(|(at, _)| *at))
            .bind(after.map(|(_, id)| id.as_str()).unwrap_or_default())
            .bind(LATE_TRAFFIC_PAGE)
            .fetch_all(&self.pool)
            .await?;
        let mut rows = 0;
        for (_, id, has_traffic) in &page {
            if *has_traffic {
                let id = id
                    .parse()
                    .map_err(|error| inconsistent("deleted_connections", "id", id, error))?;
                rows += self.delete_traffic(id).await?.rows;
            }
        }
        let is_full = page.len() as i64 == LATE_TRAFFIC_PAGE;
        let next = page.into_iter().last().filter(|_| is_full).map(|(at, id, _)| (at, id));
        Ok((rows, next))
    }

    /// Deletes connections that people uninstalled before `keep`, at most `most`. Returns their
    /// number. Directory sync writes their tombstones, and their traffic goes as late traffic.
    pub async fn delete_uninstalled_connections(
        &self,
        keep: Duration,
        most: i32,
    ) -> Result<u64, StoreError> {
        let deleted: i64 = sqlx::query_scalar(
            "-- connections.delete_uninstalled
             select delete_uninstalled_connections(make_interval(secs => $1), $2)",
        )
        .bind(keep.as_secs_f64())
        .bind(most)
        .fetch_one(&self.pool)
        .await?;
        Ok(deleted.unsigned_abs())
    }

    async fn has_tombstone(&self, id: ConnectionId) -> Result<bool, StoreError> {
        let query = sqlx::query_scalar(
            "-- deleted_connections.get
             select exists (select from deleted_connections where id = $1)",
        );
        Ok(query.bind(id.to_string()).fetch_one(&self.pool).await?)
    }

    /// Deletes a step of a deleted connection's traffic.
    async fn delete_traffic(&self, id: ConnectionId) -> Result<DeletionStep, StoreError> {
        let mut step = DeletionStep::default();
        step.deliveries = self.delete_lanes(id, LOCK_DELIVERY_LANES, DELETE_DELIVERIES).await?;
        step.outbox = self.delete_lanes(id, LOCK_OUTBOX_LANES, DELETE_OUTBOX).await?;
        step.rows = (step.deliveries + step.outbox) as u64;
        // Before their replays, which would delete all of them in one statement.
        step.rows += sqlx::query(
            "-- connections.delete_replay_results
             delete from replay_results where ctid = any (array (
                 select r.ctid from replays p, lateral (
                     select r.ctid from replay_results r where r.replay = p.id limit $2) r
                  where p.connection_id = $1 limit $2))",
        )
        .bind(id.to_string())
        .bind(STEP_ROWS)
        .execute(&self.pool)
        .await?
        .rows_affected();
        if step.rows >= STEP_ROWS as u64 {
            return Ok(step);
        }
        for table in traffic_tables() {
            let sql = format!(
                "-- connections.delete_traffic
                 delete from {table} where ctid = any (array (select ctid from {table}
                     where connection_id = $1 limit $2))"
            );
            let query = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(id.to_string()).bind(STEP_ROWS);
            let rows = query.execute(&self.pool).await?.rows_affected();
            step.rows += rows;
            match table.as_str() {
                "dead_letters" => step.dead_letters += rows as i64,
                "outbox_failures" => step.outbox += rows as i64,
                _ => {}
            }
        }
        Ok(step)
    }

    /// Deletes rows of lanes, and the lanes once they are empty. Locks the lanes first, in the
    /// order of all statements, so that nothing is enqueued or claimed meanwhile.
    async fn delete_lanes(
        &self,
        id: ConnectionId,
        lock: &'static str,
        delete: &'static str,
    ) -> Result<i64, StoreError> {
        let mut tx = self.pool.begin().await?;
        let lanes: Vec<i64> = sqlx::query_scalar(lock)
            .bind(id.to_string())
            .bind(STEP_LANES)
            .fetch_all(&mut *tx)
            .await?;
        let query = sqlx::query_scalar(delete).bind(id.to_string()).bind(lanes).bind(STEP_ROWS);
        let rows = query.fetch_one(&mut *tx).await?;
        tx.commit().await?;
        Ok(rows)
    }
}

/// Deleted connections per page of [`LATE_TRAFFIC`].
const LATE_TRAFFIC_PAGE: i64 = 50;
/// Connections that were deleted within the last day, by id, and whether each has traffic.
const LATE_TRAFFIC: &str = "-- deleted_connections.recent
    select d.deleted_at, d.id,
           exists (select from deliveries t where t.connection_id = d.id)
           or exists (select from outbox t where t.connection_id = d.id)
           or exists (select from outbox_channels t where t.connection_id = d.id)
           or exists (select from outbox_failures t where t.connection_id = d.id)
           or exists (select from dead_letters t where t.connection_id = d.id)
           or exists (select from runs t where t.connection_id = d.id)
           or exists (select from run_parts t where t.connection_id = d.id)
           or exists (select from run_controls t where t.connection_id = d.id)
           or exists (select from approvals t where t.connection_id = d.id)
           or exists (select from feedback t where t.connection_id = d.id)
           or exists (select from connection_usage t where t.connection_id = d.id)
           or exists (select from replays t where t.connection_id = d.id)
           or exists (select from pauses t where t.connection_id = d.id)
           or exists (select from response_url_uses t where t.connection_id = d.id)
           or exists (select from channel_binding_history t where t.connection_id = d.id)
           or exists (select from known_channels t where t.connection_id = d.id)
           or exists (select from deleted_messages t where t.connection_id = d.id)
           or exists (select from user_questions t where t.connection_id = d.id)
           or exists (select from connection_backlog t where t.connection_id = d.id)
           or exists (select from notifications t where t.connection_id = d.id)
           or exists (select from ignored_webhooks t where t.connection_id = d.id)
           or exists (select from delivery_log t where t.connection_id = d.id)
           or exists (select from outbox_log t where t.connection_id = d.id) as has_traffic
      from (select deleted_at, id from deleted_connections
             where (deleted_at, id) > (greatest($1, now() - interval '1 day'), $2)
             order by deleted_at, id limit $3) d
     order by d.deleted_at, d.id";

/// Maximum rows per table and step.
const STEP_ROWS: i64 = 5_000;
/// Maximum lanes per step.
const STEP_LANES: i64 = 100;

/// Result of a step.
#[derive(Default)]
struct DeletionStep {
    deliveries: i64,
    outbox: i64,
    dead_letters: i64,
    rows: u64,
}

/// Returns the tables whose rows need no lock of a lane, with each slot of a rotating table.
fn traffic_tables() -> impl Iterator<Item = String> {
    let plain = [
        "outbox_channels",
        "outbox_failures",
        "runs",
        "run_parts",
        "run_controls",
        "approvals",
        "feedback",
        "dead_letters",
        "connection_usage",
        "replays",
        "pauses",
        "response_url_uses",
        "channel_binding_history",
        "known_channels",
        "deleted_messages",
        "user_questions",
        "connection_backlog",
        "notifications",
    ];
    let rotating = [("ignored_webhooks", 8), ("delivery_log", 32), ("outbox_log", 32)];
    let slots = rotating
        .into_iter()
        .flat_map(|(family, slots)| (0..slots).map(move |slot| format!("{family}_{slot}")));
    plain.into_iter().map(str::to_owned).chain(slots)
}

/// Lanes with deliveries. Locks the rows of those that have one.
const LOCK_DELIVERY_LANES: &str = "-- connections.lock_delivery_lanes
    with page as (select distinct lane from deliveries where connection_id = $1 order by lane
                   limit $2),
    locked as (
        select l.lane from page p join delivery_lanes l on l.lane = p.lane and l.connection_id = $1
         order by l.lane for update of l)
    select p.lane from page p left join locked using (lane)";

/// Deletes deliveries of locked lanes. Deletes the lanes when all their deliveries are gone,
/// otherwise postpones them. Frees the slots of running ones in both cases.
const DELETE_DELIVERIES: &str = "-- connections.delete_deliveries
    with gone as (
        delete from deliveries where ctid = any (array (
            select ctid from deliveries where connection_id = $1 and lane = any ($2) limit $3))
            returning 1),
    n as (select count(*) as n from gone),
    slots as (
        update agent_slots s set connection_id = null, lane = null, worker = null
          from delivery_lanes l
         where l.connection_id = $1 and l.lane = any ($2) and l.worker is not null
           and s.worker = l.worker and s.connection_id = l.connection_id and s.lane = l.lane),
    lanes as (
        delete from delivery_lanes l using n where n.n < $3 and l.connection_id = $1
           and l.lane = any ($2)),
    held as (
        update delivery_lanes l set worker = null, next_at = 'infinity' from n
         where n.n >= $3 and l.connection_id = $1 and l.lane = any ($2))
    select n from n";

/// Lanes with messages, locked.
const LOCK_OUTBOX_LANES: &str = "-- connections.lock_outbox_lanes
    with page as (select distinct lane from outbox where connection_id = $1 order by lane limit $2),
    locked as (
        select l.lane from page p join outbox_lanes l on l.lane = p.lane and l.connection_id = $1
         order by l.lane for update of l)
    select p.lane from page p left join locked using (lane)";

/// Deletes messages of locked lanes, then the lanes, or postpones them.
const DELETE_OUTBOX: &str = "-- connections.delete_outbox
    with gone as (
        delete from outbox where ctid = any (array (
            select ctid from outbox where connection_id = $1 and lane = any ($2) limit $3))
            returning 1),
    n as (select count(*) as n from gone),
    lanes as (
        delete from outbox_lanes l using n where n.n < $3 and l.connection_id = $1
           and l.lane = any ($2)),
    held as (
        update outbox_lanes l set worker = null, next_at = 'infinity' from n
         where n.n >= $3 and l.connection_id = $1 and l.lane = any ($2))
    select n from n";

/// Deletes the row of a connection and rows that reference it. [`Store::delete_connection`] deletes
/// its traffic.
pub(in crate::store) async fn delete_row(
    executor: impl PgExecutor<'_>,
    id: ConnectionId,
) -> Result<DeletedConnection, StoreError> {
    let row = sqlx::query(
        "-- connections.delete
         with used as (
             update link_codes set consumed_channel = null, consumed_user = null
              where consumed_connection = $1 and connection_id is distinct from $1),
         gone as (delete from connections where id = $1 returning 1)
         select (select count(*) from channel_bindings where connection_id = $1) as bindings,
                (select count(*) from link_codes where connection_id = $1) as link_codes,
                exists (select from gone) as there",
    )
    .bind(id.to_string())
    .fetch_one(executor)
    .await?;
    if !row.try_get::<bool, _>("there")? {
        return Err(StoreError::Missing(format!("connection {id}")));
    }
    Ok(DeletedConnection {
        bindings: row.try_get("bindings")?,
        link_codes: row.try_get("link_codes")?,
        ..DeletedConnection::default()
    })
}
