//! The life of a connection as an operator sees and changes it: switched, looked at, deleted.
//!
//! `pending → active → stopped | error | revoked`. What Slack's refusals do to it is in [`super::refusals`], what its events
//! do in [`super::changes`]. Every change raises the row's version, and the sweep tells the directory.

use super::{
    Store, StoreError, column,
    connections::{TABLE, settings},
    moment, nullable,
};
use crate::types::{AgentId, AppId, ConnectionId, EnterpriseId, OrgId, Settings, Status, TeamId};
use serde::Serialize;
use sqlx::{PgExecutor, Row, postgres::PgRow};

/// A connection as an operator sees it: no secrets.
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
    pub installed_at: Option<String>,
    pub updated_at: Option<String>,
    pub version: i64,
}

/// A change of a connection's status.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct HistoryEntry {
    pub at: Option<String>,
    pub status: Status,
    pub reason: String,
}

/// How much of a tenant was deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // the tables' names
pub struct DeletedConnection {
    pub bindings: i64,
    pub claims: i64,
    pub outbox: i64,
    pub parked: i64,
    pub dead: i64,
}

impl Store {
    /// Sets the status. An unknown connection is [`StoreError::Missing`].
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

    /// Every connection, or one.
    pub async fn connection_summaries(
        &self,
        only: Option<ConnectionId>,
    ) -> Result<Vec<ConnectionSummary>, StoreError> {
        let rows = sqlx::query(
            "-- connections.summaries
             select c.id, c.org_id, c.agent_id, c.app_id, c.enterprise_id, c.team_id, c.preview_mode, c.status,
                    c.status_reason, c.bot_user_id, c.bot_token is not null as has_bot_token, c.settings,
                    c.installed_at, c.updated_at, c.version,
                    (select count(*) from channel_bindings b where b.connection_id = c.id) as bindings
               from connections c where $1::text is null or c.id = $1
              order by c.org_id, c.app_id, c.team_id nulls first",
        )
        .bind(only.map(|id| id.to_string()))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(summary).collect()
    }

    /// How a connection's status changed, oldest first.
    pub async fn connection_history(
        &self,
        id: ConnectionId,
    ) -> Result<Vec<HistoryEntry>, StoreError> {
        let rows = sqlx::query(
            "-- connections.history
             select id::text, at, status, reason from connection_history where connection_id = $1 order by id",
        )
        .bind(id.to_string())
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let key: String = row.try_get("id")?;
                Ok(HistoryEntry {
                    at: moment(row, "connection_history", &key, "at")?,
                    status: column(row, "connection_history", &key, "status")?,
                    reason: row.try_get("reason")?,
                })
            })
            .collect()
    }

    /// Deletes a connection and everything that is kept for it. What is in `seen` names only ids, and goes by its age.
    pub async fn delete_connection(
        &self,
        id: ConnectionId,
    ) -> Result<DeletedConnection, StoreError> {
        delete(&self.pool, id).await
    }
}

pub(super) async fn delete(
    executor: impl PgExecutor<'_>,
    id: ConnectionId,
) -> Result<DeletedConnection, StoreError> {
    let row = sqlx::query(
        "-- connections.delete
         with parked as (delete from lane_backlog where connection_id = $1 returning 1),
         unsaid as (delete from outbox where connection_id = $1 returning 1),
         given_up as (delete from dead where connection_id = $1 returning 1),
         replayed as (delete from replays where connection_id = $1),
         used as (
             update link_claims set consumed_channel = null, consumed_user = null
              where consumed_connection = $1 and connection_id is distinct from $1),
         gone as (delete from connections where id = $1 returning 1)
         select (select count(*) from channel_bindings where connection_id = $1) as bindings,
                (select count(*) from link_claims where connection_id = $1) as claims,
                (select count(*) from unsaid) as outbox, (select count(*) from parked) as parked,
                (select count(*) from given_up) as dead, exists (select from gone) as there",
    )
    .bind(id.to_string())
    .fetch_one(executor)
    .await?;
    if !row.try_get::<bool, _>("there")? {
        return Err(StoreError::Missing(format!("connection {id}")));
    }
    Ok(DeletedConnection {
        bindings: row.try_get("bindings")?,
        claims: row.try_get("claims")?,
        outbox: row.try_get("outbox")?,
        parked: row.try_get("parked")?,
        dead: row.try_get("dead")?,
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
        installed_at: moment(row, TABLE, &key, "installed_at")?,
        updated_at: moment(row, TABLE, &key, "updated_at")?,
        version: row.try_get("version")?,
    })
}
