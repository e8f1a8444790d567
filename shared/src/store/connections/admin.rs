//! Operations of an operator on connections: status, summaries, deletion.
//!
//! Statuses are `pending → active → stopped | error | revoked`. [`super::token_failures`] applies
//! failures of Slack, [`crate::store::webhooks`] applies its events. Every change raises the
//! version of the row, and directory sync updates the directory.
//!
//! Deletion starts with the row of the connection, in one statement. A trigger leaves a tombstone,
//! because of which intake ignores later webhooks. Bounded steps then delete the traffic by index.
//! An interrupted deletion can be repeated.

use super::{TABLE, settings};
use crate::store::{Store, StoreError, column, inconsistent, nullable, timestamp};
use crate::types::{AgentId, AppId, ConnectionId, EnterpriseId, OrgId, Settings, Status, TeamId};
use serde::Serialize;
use sqlx::{PgExecutor, Row, postgres::PgRow};

/// Connection without secrets, for operators.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct ConnectionSummary {
    pub id: ConnectionId,
    pub organization: OrgId,
    pub agent: Option<AgentId>,
    pub app: AppId,
    pub enterprise: Option<EnterpriseId>,
    pub team: Option<TeamId>,
    pub preview_mode: bool,
    pub status: Status,
    pub reason: String,
    pub bot_user: Option<String>,
    pub has_bot_token: bool,
    pub settings: Settings,
    pub bindings: i64,
    pub sending_paused_at: Option<String>,
    pub installed_at: Option<String>,
    pub updated_at: Option<String>,
    pub version: i64,
}

/// Change of a connection's status.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct HistoryEntry {
    pub at: Option<String>,
    pub status: Status,
    pub reason: String,
}

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
    /// Sets the status. [`StoreError::Missing`] for an unknown connection.
    pub async fn set_connection_status(
        &self,
        id: ConnectionId,
        status: Status,
    ) -> Result<(), StoreError> {
        let changed = sqlx::query(
            "-- connections.set_status
             update connections set status = $2, status_reason = '' where id = $1",
        )
        .bind(id.to_string())
        .bind(status.as_str())
        .execute(&self.pool)
        .await?;
        if changed.rows_affected() == 0 {
            return Err(StoreError::Missing(format!("connection {id}")));
        }
        Ok(())
    }

    /// Returns all connections, or one.
    pub async fn connection_summaries(
        &self,
        only: Option<ConnectionId>,
    ) -> Result<Vec<ConnectionSummary>, StoreError> {
        let rows = sqlx::query(
            "-- connections.summaries
             select c.id, c.org_id, c.agent_id, c.app_id, c.enterprise_id, c.team_id,
                    c.preview_mode, c.status, c.status_reason, c.bot_user_id,
                    c.bot_token is not null as has_bot_token, c.settings, c.sending_paused_at,
                    c.installed_at, c.updated_at, c.version,
                    (select count(*) from channel_bindings b
                      where b.connection_id = c.id) as bindings
               from connections c where $1::text is null or c.id = $1
              order by c.org_id, c.app_id, c.team_id nulls first",
        )
        .bind(only.map(|id| id.to_string()))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(summary).collect()
    }

    /// Returns the status changes of a connection, oldest first.
    pub async fn connection_history(
        &self,
        id: ConnectionId,
    ) -> Result<Vec<HistoryEntry>, StoreError> {
        let rows = sqlx::query(
            "-- connections.history
             select id::text, at, status, reason from connection_status_history
              where connection_id = $1 order by id",
        )
        .bind(id.to_string())
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let key: String = row.try_get("id")?;
                Ok(HistoryEntry {
                    at: timestamp(row, "connection_status_history", &key, "at")?,
                    status: column(row, "connection_status_history", &key, "status")?,
                    reason: row.try_get("reason")?,
                })
            })
            .collect()
    }

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

    /// Deletes traffic that arrived for connections after they were deleted within the last day: at
    /// most a step per connection. Returns the number of rows.
    pub async fn delete_late_traffic(&self) -> Result<u64, StoreError> {
        let ids: Vec<String> = sqlx::query_scalar(
            "-- deleted_connections.recent
             select id from deleted_connections where deleted_at > now() - interval '1 day'
              order by deleted_at",
        )
        .fetch_all(&self.pool)
        .await?;
        let mut rows = 0;
        for id in ids {
            let id = id
                .parse()
                .map_err(|error| inconsistent("deleted_connections", "id", &id, error))?;
            rows += self.delete_traffic(id).await?.rows;
        }
        Ok(rows)
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
        "dead_letters",
        "connection_usage",
        "replays",
        "pauses",
        "response_url_uses",
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

fn summary(row: &PgRow) -> Result<ConnectionSummary, StoreError> {
    let key: String = row.try_get("id")?;
    let settings = settings(row, &key)?;
    Ok(ConnectionSummary {
        id: column(row, TABLE, &key, "id")?,
        organization: column(row, TABLE, &key, "org_id")?,
        agent: nullable(row, TABLE, &key, "agent_id")?,
        app: column(row, TABLE, &key, "app_id")?,
        enterprise: nullable(row, TABLE, &key, "enterprise_id")?,
        team: nullable(row, TABLE, &key, "team_id")?,
        preview_mode: row.try_get("preview_mode")?,
        status: column(row, TABLE, &key, "status")?,
        reason: row.try_get("status_reason")?,
        bot_user: row.try_get("bot_user_id")?,
        has_bot_token: row.try_get("has_bot_token")?,
        settings,
        bindings: row.try_get("bindings")?,
        sending_paused_at: timestamp(row, TABLE, &key, "sending_paused_at")?,
        installed_at: timestamp(row, TABLE, &key, "installed_at")?,
        updated_at: timestamp(row, TABLE, &key, "updated_at")?,
        version: row.try_get("version")?,
    })
}
