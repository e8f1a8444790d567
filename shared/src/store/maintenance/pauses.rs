//! Pauses of agents and of sending for a connection, until an operator resumes.
//!
//! Each pause is a row of `pauses` whose duration is subtracted from ages, so that waiting work
//! does not expire. Repeated operations change nothing.

use crate::store::{Store, StoreError};
use crate::types::{AgentId, ConnectionId, OrgId};

impl Store {
    /// Pauses an agent: no attempt begins. Returns false if it was paused. [`StoreError::Missing`]
    /// for an unknown agent.
    pub async fn pause_agent(&self, org: &OrgId, agent: &AgentId) -> Result<bool, StoreError> {
        self.switch_agent(
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
    pub async fn resume_agent(&self, org: &OrgId, agent: &AgentId) -> Result<bool, StoreError> {
        self.switch_agent(
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
        sql: &'static str,
        org: &OrgId,
        agent: &AgentId,
    ) -> Result<bool, StoreError> {
        let query = sqlx::query_scalar(sql).bind(org.as_str()).bind(agent.as_str());
        let changed = query.fetch_optional(&self.pool).await?;
        changed.ok_or_else(|| StoreError::Missing(format!("agent {org}/{agent}")))
    }

    /// Pauses sending for a connection. Returns false if it was paused. [`StoreError::Missing`] for
    /// an unknown connection.
    pub async fn pause_sending(&self, connection: ConnectionId) -> Result<bool, StoreError> {
        self.switch_sending(
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
    pub async fn resume_sending(&self, connection: ConnectionId) -> Result<bool, StoreError> {
        self.switch_sending(
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
        sql: &'static str,
        connection: ConnectionId,
    ) -> Result<bool, StoreError> {
        let query = sqlx::query_scalar(sql).bind(connection.to_string());
        let changed = query.fetch_optional(&self.pool).await?;
        changed.ok_or_else(|| StoreError::Missing(format!("connection {connection}")))
    }
}
