//! Operations of an operator on connections: status and summaries. [`super::deletion`] deletes
//! them.
//!
//! Statuses are `pending → active → stopped | error | revoked`. [`super::token_failures`] applies
//! failures of Slack, [`crate::store::webhooks`] applies its events. Every change raises the
//! version of the row, and directory sync updates the directory.

use super::{TABLE, settings};
use crate::domain::{
    Actor, AgentId, AppId, ConnectionId, ConnectionSettings, ConnectionStatus, EnterpriseId, OrgId,
    TeamId,
};
use crate::store::{
    AuditAction, AuditOrg, ConnectionBacklog, NewAuditEntry, Store, StoreError, add_audit_entries,
    column, nullable, timestamp,
};
use serde::Serialize;
use serde_json::json;
use sqlx::{FromRow, Row, postgres::PgRow};

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
    pub status: ConnectionStatus,
    pub reason: String,
    pub bot_user: Option<String>,
    pub scopes: Vec<String>,
    pub installed_by: Option<String>,
    pub has_bot_token: bool,
    pub settings: ConnectionSettings,
    pub bindings: i64,
    /// Backlog, if it is near a limit.
    pub backlog: Option<ConnectionBacklog>,
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
    pub status: ConnectionStatus,
    pub reason: String,
}

/// Columns of a [`ConnectionSummary`], and the tables they are from.
macro_rules! summary_columns {
    () => {
        "c.id, c.org_id, c.agent_id, c.app_id, c.enterprise_id, c.team_id, c.preview_mode, c.status,
         c.status_reason, c.bot_user_id, c.scopes, c.installed_by, c.bot_token is not null as has_bot_token, c.settings,
         c.sending_paused_at, c.installed_at, c.updated_at, c.version,
         (select count(*) from channel_bindings b where b.connection_id = c.id) as bindings, g.*
           from connections c left join connection_backlog g on g.connection_id = c.id "
    };
}

impl Store {
    /// Sets the status and returns the resulting one: a revoked connection stays revoked, since its
    /// tokens are no longer valid. [`StoreError::Missing`] for an unknown connection.
    pub async fn set_connection_status(
        &self,
        by: &Actor,
        id: ConnectionId,
        status: ConnectionStatus,
    ) -> Result<ConnectionStatus, StoreError> {
        let action = match status {
            ConnectionStatus::Stopped => AuditAction::ConnectionDisable,
            ConnectionStatus::Active => AuditAction::ConnectionEnable,
            _ => AuditAction::ConnectionChange,
        };
        self.change_status(by, action, id, status).await
    }

    /// Stops a connection before its deletion, so that ingests accept no more webhooks. Adds the
    /// entry of the deletion to the audit log.
    pub async fn begin_connection_deletion(
        &self,
        by: &Actor,
        id: ConnectionId,
    ) -> Result<(), StoreError> {
        let stopped = ConnectionStatus::Stopped;
        self.change_status(by, AuditAction::ConnectionDelete, id, stopped).await.map(drop)
    }

    async fn change_status(
        &self,
        by: &Actor,
        action: AuditAction,
        id: ConnectionId,
        status: ConnectionStatus,
    ) -> Result<ConnectionStatus, StoreError> {
        let mut tx = self.pool.begin().await?;
        let row = sqlx::query(
            "-- connections.set_status
             with old as (
                 select id, status, org_id, app_id, enterprise_id, team_id from connections
                  where id = $1 for update)
             update connections c
                set status = case when c.status = 'revoked' then c.status else $2 end,
                    status_reason = case when c.status = 'revoked' then c.status_reason else '' end
               from old where c.id = old.id
             returning c.status, old.status as old_status, old.org_id, old.app_id,
                       coalesce(old.team_id, old.enterprise_id) as installation",
        )
        .bind(id.to_string())
        .bind(status.as_str())
        .fetch_optional(&mut *tx)
        .await?;
        let row = row.ok_or_else(|| StoreError::Missing(format!("connection {id}")))?;
        let key = id.to_string();
        let now: ConnectionStatus = column(&row, TABLE, &key, "status")?;
        let before: ConnectionStatus = column(&row, TABLE, &key, "old_status")?;
        let is_deletion = action == AuditAction::ConnectionDelete;
        if is_deletion || now != before {
            let org = AuditOrg::Org(column(&row, TABLE, &key, "org_id")?);
            let entry = NewAuditEntry::new(action, id, org);
            let entry = if is_deletion {
                let (app, installation): (String, Option<String>) =
                    (row.try_get("app_id")?, row.try_get("installation")?);
                entry.before(json!({
                    "status": before.as_str(), "app": app, "installation": installation,
                }))
            } else {
                let shown = |status: ConnectionStatus| json!({ "status": status.as_str() });
                entry.before(shown(before)).after(shown(now))
            };
            add_audit_entries(&mut tx, by, &[entry]).await?;
        }
        tx.commit().await?;
        Ok(now)
    }

    /// Moves a connection to another organization and replaces its default agent.
    /// [`StoreError::Missing`] for an unknown connection, organization or agent.
    pub async fn move_connection(
        &self,
        by: &Actor,
        id: ConnectionId,
        org: &OrgId,
        agent: Option<&AgentId>,
    ) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let row = sqlx::query(
            "-- connections.move
             with old as (
                 select id, org_id, agent_id from connections where id = $1 for update)
             update connections c set org_id = $2, agent_id = $3
               from old where c.id = old.id and exists (select from organizations where id = $2)
                and ($3::text is null
                     or exists (select from agents where org_id = $2 and id = $3))
             returning old.org_id, old.agent_id",
        )
        .bind(id.to_string())
        .bind(org.as_str())
        .bind(agent.map(AgentId::as_str))
        .fetch_optional(&mut *tx)
        .await?;
        let missing = || {
            let agent = agent.map(|agent| format!(" with agent {agent}")).unwrap_or_default();
            StoreError::Missing(format!("connection {id}, or organization {org}{agent},"))
        };
        let row = row.ok_or_else(missing)?;
        let key = id.to_string();
        let before: OrgId = column(&row, TABLE, &key, "org_id")?;
        let old_agent: Option<AgentId> = nullable(&row, TABLE, &key, "agent_id")?;
        // Both organizations see the change.
        let orgs = if before == *org { vec![org] } else { vec![&before, org] };
        let entries = orgs.into_iter().map(|of| {
            NewAuditEntry::new(AuditAction::ConnectionMove, id, AuditOrg::Org(of.clone()))
                .before(json!({ "organization": before, "agent": old_agent }))
                .after(json!({ "organization": org, "agent": agent }))
        });
        add_audit_entries(&mut tx, by, &entries.collect::<Vec<_>>()).await?;
        Ok(tx.commit().await?)
    }

    /// Returns all connections, or one.
    pub async fn connection_summaries(
        &self,
        only: Option<ConnectionId>,
    ) -> Result<Vec<ConnectionSummary>, StoreError> {
        let rows = sqlx::query(concat!(
            "-- connections.summaries\n select ",
            summary_columns!(),
            " where $1::text is null or c.id = $1
              order by c.org_id, c.app_id, c.team_id nulls first"
        ))
        .bind(only.map(|id| id.to_string()))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(summary).collect()
    }

    /// Returns connections after an id, of all organizations or one, at most `limit`.
    pub async fn connections_page(
        &self,
        org: Option<&OrgId>,
        after: Option<ConnectionId>,
        limit: i64,
    ) -> Result<Vec<ConnectionSummary>, StoreError> {
        let rows = sqlx::query(concat!(
            "-- connections.page\n select ",
            summary_columns!(),
            " where ($1::text is null or c.org_id = $1) and ($2::text is null or c.id > $2)
              order by c.id limit $3"
        ))
        .bind(org.map(OrgId::as_str))
        .bind(after.map(|id| id.to_string()))
        .bind(limit)
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
        scopes: row.try_get("scopes")?,
        installed_by: row.try_get("installed_by")?,
        has_bot_token: row.try_get("has_bot_token")?,
        settings,
        bindings: row.try_get("bindings")?,
        backlog: match row.try_get::<Option<String>, _>("connection_id")? {
            Some(_) => Some(ConnectionBacklog::from_row(row)?),
            None => None,
        },
        sending_paused_at: timestamp(row, TABLE, &key, "sending_paused_at")?,
        installed_at: timestamp(row, TABLE, &key, "installed_at")?,
        updated_at: timestamp(row, TABLE, &key, "updated_at")?,
        version: row.try_get("version")?,
    })
}
