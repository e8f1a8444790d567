//! Pauses of agents and of sending for a connection, until an operator resumes.
//!
//! Each pause is a row of `pauses` whose duration is subtracted from ages, so that waiting work
//! does not expire. Repeated operations change nothing.

use crate::domain::{Actor, AgentId, ConnectionId, OrgId};
use crate::store::{AuditAction, AuditOrg, NewAuditEntry, Store, StoreError, add_audit_entries};
use serde_json::json;

impl Store {
    /// Pauses an agent: no attempt begins. Returns false if it was paused. [`StoreError::Missing`]
    /// for an unknown agent.
    pub async fn pause_agent(
        &self,
        by: &Actor,
        org: &OrgId,
        agent: &AgentId,
    ) -> Result<bool, StoreError> {
        self.switch_agent(
            by,
            AuditAction::AgentPause,
            "-- pauses.pause_agent
             with a as (select paused_at from agents where org_id = $1 and id = $2),
             paused as (
                 update agents set paused_at = now() where org_id = $1 and id = $2
                    and paused_at is null
                 returning org_id, id, paused_at),
             noted as (
                 insert into pauses (org_id, agent_id, started_at) select org_id, id, paused_at
                   from paused)
             select exists (select from paused) from a",
            org,
            agent,
        )
        .await
    }

    /// Resumes an agent. Returns false if it was not paused. [`StoreError::Missing`] for an unknown
    /// agent.
    pub async fn resume_agent(
        &self,
        by: &Actor,
        org: &OrgId,
        agent: &AgentId,
    ) -> Result<bool, StoreError> {
        self.switch_agent(
            by,
            AuditAction::AgentResume,
            "-- pauses.resume_agent
             with a as (select paused_at from agents where org_id = $1 and id = $2),
             resumed as (
                 update agents set paused_at = null where org_id = $1 and id = $2
                    and paused_at is not null
                 returning org_id, id),
             noted as (
                 update pauses p set ended_at = now() from resumed r
                  where p.org_id = r.org_id and p.agent_id = r.id and p.ended_at is null)
             select exists (select from resumed) from a",
            org,
            agent,
        )
        .await
    }

    async fn switch_agent(
        &self,
        by: &Actor,
        action: AuditAction,
        sql: &'static str,
        org: &OrgId,
        agent: &AgentId,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let query = sqlx::query_scalar(sql).bind(org.as_str()).bind(agent.as_str());
        let changed: Option<bool> = query.fetch_optional(&mut *tx).await?;
        let changed = changed.ok_or_else(|| StoreError::Missing(format!("agent {org}/{agent}")))?;
        if changed {
            let object = format!("{org}/{agent}");
            let entry = NewAuditEntry::new(action, object, AuditOrg::Org(org.clone()));
            add_audit_entries(&mut tx, by, &[paused(entry)]).await?;
        }
        tx.commit().await?;
        Ok(changed)
    }

    /// Pauses sending for a connection. Returns false if it was paused. [`StoreError::Missing`] for
    /// an unknown connection.
    pub async fn pause_sending(
        &self,
        by: &Actor,
        connection: ConnectionId,
    ) -> Result<bool, StoreError> {
        self.switch_sending(
            by,
            AuditAction::ConnectionPauseSending,
            "-- pauses.pause_sending
             with c as (select sending_paused_at from connections where id = $1),
             paused as (
                 update connections set sending_paused_at = now() where id = $1
                    and sending_paused_at is null
                 returning id, sending_paused_at),
             noted as (
                 insert into pauses (connection_id, started_at) select id, sending_paused_at
                   from paused)
             select exists (select from paused) from c",
            connection,
        )
        .await
    }

    /// Resumes sending for a connection. Returns false if it was not paused.
    /// [`StoreError::Missing`] for an unknown connection.
    pub async fn resume_sending(
        &self,
        by: &Actor,
        connection: ConnectionId,
    ) -> Result<bool, StoreError> {
        self.switch_sending(
            by,
            AuditAction::ConnectionResumeSending,
            "-- pauses.resume_sending
             with c as (select sending_paused_at from connections where id = $1),
             resumed as (
                 update connections set sending_paused_at = null where id = $1
                    and sending_paused_at is not null
                 returning id),
             noted as (
                 update pauses p set ended_at = now() from resumed r where p.connection_id = r.id
                    and p.ended_at is null)
             select exists (select from resumed) from c",
            connection,
        )
        .await
    }

    async fn switch_sending(
        &self,
        by: &Actor,
        action: AuditAction,
        sql: &'static str,
        connection: ConnectionId,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let query = sqlx::query_scalar(sql).bind(connection.to_string());
        let changed: Option<bool> = query.fetch_optional(&mut *tx).await?;
        let changed =
            changed.ok_or_else(|| StoreError::Missing(format!("connection {connection}")))?;
        if changed {
            let org = AuditOrg::OfConnection(connection);
            let entry = NewAuditEntry::new(action, connection, org);
            add_audit_entries(&mut tx, by, &[paused(entry)]).await?;
        }
        tx.commit().await?;
        Ok(changed)
    }
}

/// Adds the state before and after a pause or resumption.
fn paused(entry: NewAuditEntry) -> NewAuditEntry {
    let pauses =
        matches!(entry.action, AuditAction::AgentPause | AuditAction::ConnectionPauseSending);
    entry.before(json!({ "paused": !pauses })).after(json!({ "paused": pauses }))
}
