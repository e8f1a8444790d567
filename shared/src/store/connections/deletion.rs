//! Deletion of connections in bounded steps.
//!
//! Deletion starts with the row of the connection, in one statement. A trigger inserts a tombstone,
//! so that intake ignores later webhooks. Steps then delete the traffic by index. An interrupted
//! deletion can be repeated.

use crate::domain::ConnectionId;
use crate::store::{Store, StoreError};
use serde::Serialize;
use sqlx::{PgExecutor, Row};
use std::time::Duration;

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
        let mut deleted = match self.delete_connection_row(id).await {
            Err(StoreError::Missing(_)) if self.has_tombstone(id).await? => {
                DeletedConnection::default()
            }
            deleted => deleted?,
        };
        self.delete_all_traffic(id, &mut deleted).await?;
        Ok(deleted)
    }

    /// Deletes the traffic of a connection whose row is deleted, and adds the numbers.
    pub async fn delete_all_traffic(
        &self,
        id: ConnectionId,
        deleted: &mut DeletedConnection,
    ) -> Result<(), StoreError> {
        loop {
            let step = self.delete_traffic(id).await?;
            deleted.outbox += step.outbox;
            deleted.deliveries += step.deliveries;
            deleted.dead_letters += step.dead_letters;
            if step.rows == 0 {
                return Ok(());
            }
        }
    }

    /// Deletes a connection's row and those that reference it. Workers delete its traffic.
    pub async fn delete_connection_row(
        &self,
        id: ConnectionId,
    ) -> Result<DeletedConnection, StoreError> {
        // In steps, because the deletion of the row deletes all rows that reference it.
        let counts: (i64, i64) = sqlx::query_as(
            "-- connections.count_references
             select (select count(*) from channel_bindings where connection_id = $1),
                    (select count(*) from link_codes where connection_id = $1)",
        )
        .bind(id.to_string())
        .fetch_one(&self.pool)
        .await?;
        loop {
            let deleted: i64 = sqlx::query_scalar(
                "-- connections.delete_references\n select delete_connection_references($1, $2)",
            )
            .bind(id.to_string())
            .bind(STEP_ROWS as i32)
            .fetch_one(&self.pool)
            .await?;
            if deleted < STEP_ROWS {
                break;
            }
        }
        let deleted = delete_row(&self.pool, id).await?;
        Ok(DeletedConnection { bindings: counts.0, link_codes: counts.1, ..deleted })
    }

    /// Deletes connections that people uninstalled more than `keep` ago, at most `most`, after the
    /// `skip` oldest. Returns the number of connections that were deleted, or lost a step of their
    /// many rows. Directory sync writes their tombstones, and late traffic includes their traffic.
    pub async fn delete_uninstalled_connections(
        &self,
        keep: Duration,
        most: i32,
        skip: i32,
    ) -> Result<u64, StoreError> {
        let deleted: i64 = sqlx::query_scalar(
            "-- connections.delete_uninstalled
             select delete_uninstalled_connections(make_interval(secs => $1), $2, $3)",
        )
        .bind(keep.as_secs_f64())
        .bind(most)
        .bind(skip)
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
    pub(super) async fn delete_traffic(
        &self,
        id: ConnectionId,
    ) -> Result<DeletionStep, StoreError> {
        let mut step = DeletionStep::default();
        step.deliveries = self.delete_lanes(id, LOCK_DELIVERY_LANES, DELETE_DELIVERIES).await?;
        step.outbox = self.delete_lanes(id, LOCK_OUTBOX_LANES, DELETE_OUTBOX).await?;
        step.rows = (step.deliveries + step.outbox) as u64;
        // Before their replays, whose deletion would delete all results in one statement.
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

/// Maximum rows per table and step.
const STEP_ROWS: i64 = 5_000;
/// Maximum lanes per step.
const STEP_LANES: i64 = 100;

/// Result of a step.
#[derive(Default)]
pub(super) struct DeletionStep {
    deliveries: i64,
    outbox: i64,
    dead_letters: i64,
    pub(super) rows: u64,
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
