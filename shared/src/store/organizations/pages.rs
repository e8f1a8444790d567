//! Pages of organizations, agents, link codes and bindings, in a stable order, for the control API.
//!
//! A page begins after a key, so that concurrent insertions and deletions do not shift other rows.

use super::link_codes::{LinkCodeRecord, link_code_columns, link_code_record};
use crate::domain::{AgentId, ConnectionId, OrgId};
use crate::store::{AgentState, Store, StoreError, column, maintenance::json};
use serde::{Deserialize, Serialize};

/// Organization.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct OrganizationRecord {
    pub id: String,
    pub name: String,
    pub created_at: String,
    pub agents: i64,
    pub connections: i64,
}

/// Binding of a conversation to an agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct BindingRecord {
    pub connection: String,
    pub team: String,
    pub channel: String,
    /// `<organization>/<agent>`.
    pub agent: String,
    pub bound_by: String,
    pub bound_at: String,
    pub last_send_error: Option<String>,
}

impl Store {
    /// Returns organizations after an id, or one.
    pub async fn organizations(
        &self,
        only: Option<&OrgId>,
        after: Option<&str>,
        limit: i64,
    ) -> Result<Vec<OrganizationRecord>, StoreError> {
        let rows = sqlx::query(
            "-- organizations.page
             select to_jsonb(t) as row from (
                 select o.id, o.name, o.created_at,
                        (select count(*) from agents a where a.org_id = o.id) as agents,
                        (select count(*) from connections c where c.org_id = o.id) as connections
                   from organizations o
                  where ($1::text is null or o.id = $1) and ($2::text is null or o.id > $2)
                  order by o.id limit $3) t",
        )
        .bind(only.map(OrgId::as_str))
        .bind(after)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(json).collect()
    }

    /// Returns agents after `after`, of all organizations or one.
    pub async fn agents_page(
        &self,
        org: Option<&OrgId>,
        after: Option<(&str, &str)>,
        limit: i64,
    ) -> Result<Vec<AgentState>, StoreError> {
        let rows = sqlx::query(
            "-- agents.page
             select org_id, id from agents
              where ($1::text is null or org_id = $1)
                and ($2::text is null or (org_id, id) > ($2, $3))
              order by org_id, id limit $4",
        )
        .bind(org.map(OrgId::as_str))
        .bind(after.map(|(org, _)| org))
        .bind(after.map(|(_, id)| id))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        let mut agents = Vec::with_capacity(rows.len());
        for row in &rows {
            let org: OrgId = column(row, "agents", "page", "org_id")?;
            let id: AgentId = column(row, "agents", "page", "id")?;
            // An agent that was deleted meanwhile is left out.
            agents.extend(self.agent_states(Some(&org), Some(&id)).await?);
        }
        Ok(agents)
    }

    /// Returns link codes after `after`, newest first.
    pub async fn link_codes_page(
        &self,
        org: Option<&OrgId>,
        after: Option<(&str, &str)>,
        limit: i64,
    ) -> Result<Vec<LinkCodeRecord>, StoreError> {
        let rows = sqlx::query(concat!(
            "-- link_codes.page\n select * from (select ",
            link_code_columns!(),
            " from link_codes where $1::text is null or org_id = $1) t
              where $2::text is null or (created_at, id) < ($2::timestamptz, $3)
              order by created_at desc, id desc limit $4"
        ))
        .bind(org.map(OrgId::as_str))
        .bind(after.map(|(at, _)| at))
        .bind(after.map(|(_, id)| id))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(link_code_record).collect()
    }

    /// Returns the bindings of a connection after `after`.
    pub async fn bindings_page(
        &self,
        connection: ConnectionId,
        after: Option<(&str, &str)>,
        limit: i64,
    ) -> Result<Vec<BindingRecord>, StoreError> {
        let rows = sqlx::query(
            "-- bindings.page
             select to_jsonb(t) as row from (
                 select connection_id as connection, team_id as team, channel_id as channel,
                        org_id || '/' || agent_id as agent, bound_by, bound_at, last_send_error
                   from channel_bindings
                  where connection_id = $1
                    and ($2::text is null or (team_id, channel_id) > ($2, $3))
                  order by team_id, channel_id limit $4) t",
        )
        .bind(connection.to_string())
        .bind(after.map(|(team, _)| team))
        .bind(after.map(|(_, channel)| channel))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(json).collect()
    }
}
