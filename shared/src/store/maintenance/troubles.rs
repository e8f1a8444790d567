//! Agents and connections that need attention, for the first page of the console.

use super::json;
use crate::domain::OrgId;
use crate::store::{Store, StoreError};
use serde::{Deserialize, Serialize};

/// Agent that is paused, or whose circuit breaker is open.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct UnhealthyAgent {
    pub organization: String,
    pub id: String,
    pub paused_at: Option<String>,
    pub opened_at: Option<String>,
    pub last_error: Option<String>,
    /// Waiting and running deliveries of conversations whose head is for the agent.
    pub deliveries: i64,
}

/// Connection that failed or is stopped, or whose sending is paused.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct UnhealthyConnection {
    pub organization: String,
    pub id: String,
    pub status: String,
    pub reason: String,
    pub sending_paused_at: Option<String>,
}

impl Store {
    /// Returns agents that are paused or fail, those that fail first, at most `limit`.
    pub async fn troubled_agents(
        &self,
        org: Option<&OrgId>,
        limit: i64,
    ) -> Result<Vec<UnhealthyAgent>, StoreError> {
        let rows = sqlx::query(
            "-- agents.troubled
             select to_jsonb(t) as row from (
                 select a.org_id as organization, a.id, a.paused_at, h.opened_at, h.last_error,
                        (select coalesce(sum(l.tail - l.head + 1), 0)::bigint
                           from delivery_lanes l
                          where l.org_id = a.org_id and l.agent_id = a.id
                            and l.head <= l.tail) as deliveries
                   from agents a left join agent_health h on h.org_id = a.org_id
                    and h.agent_id = a.id
                  where ($1::text is null or a.org_id = $1)
                    and (a.paused_at is not null or h.opened_at is not null)
                  order by a.paused_at is not null, a.org_id, a.id limit $2) t",
        )
        .bind(org.map(OrgId::as_str))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(json).collect()
    }

    /// Returns connections that failed, are stopped or send nothing, at most `limit`.
    pub async fn troubled_connections(
        &self,
        org: Option<&OrgId>,
        limit: i64,
    ) -> Result<Vec<UnhealthyConnection>, StoreError> {
        let rows = sqlx::query(
            "-- connections.troubled
             select to_jsonb(t) as row from (
                 select org_id as organization, id, status, status_reason as reason,
                        sending_paused_at
                   from connections
                  where ($1::text is null or org_id = $1)
                    and (status in ('error', 'stopped') or sending_paused_at is not null)
                  order by status, org_id, id limit $2) t",
        )
        .bind(org.map(OrgId::as_str))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(json).collect()
    }
}
