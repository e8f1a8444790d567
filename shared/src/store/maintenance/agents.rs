//! State of agents for operators: settings, pause, circuit breaker and load. No secrets.

use super::json;
use crate::domain::{AgentId, OrgId};
use crate::store::{Store, StoreError};
use serde::{Deserialize, Serialize};

/// Agent for operators.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct AgentState {
    pub organization: String,
    pub id: String,
    pub name: String,
    pub mode: String,
    pub url: String,
    pub timeout_ms: i64,
    pub max_concurrent: i64,
    pub max_per_user: i64,
    pub retry_for_ms: Option<i64>,
    pub keep_for_ms: i64,
    pub paused_at: Option<String>,
    /// Time at which the circuit breaker opened, if it is open.
    pub circuit_opened_at: Option<String>,
    pub circuit_error: Option<String>,
    /// Running attempts.
    pub running: i64,
    /// Lanes whose head is for the agent.
    pub lanes: i64,
    /// Deliveries in these lanes.
    pub deliveries: i64,
    /// Bound conversations.
    pub bindings: i64,
}

impl Store {
    /// Returns all agents, those of an organization, or one.
    pub async fn agent_states(
        &self,
        org: Option<&OrgId>,
        agent: Option<&AgentId>,
    ) -> Result<Vec<AgentState>, StoreError> {
        let rows = sqlx::query(
            "-- agents.list
             select to_jsonb(t) as row from (
                 select a.org_id as organization, a.id, a.name, a.mode, a.url, a.timeout_ms,
                        a.max_concurrent, a.max_per_user, a.retry_for_ms, a.keep_for_ms,
                        a.paused_at,
                        h.opened_at as circuit_opened_at, h.last_error as circuit_error,
                        (select count(*) from agent_slots s
                          where s.org_id = a.org_id and s.agent_id = a.id
                            and s.lane is not null) as running,
                        coalesce(l.lanes, 0) as lanes, coalesce(l.deliveries, 0) as deliveries,
                        (select count(*) from channel_bindings b
                          where b.org_id = a.org_id and b.agent_id = a.id) as bindings
                   from agents a left join agent_health h on h.org_id = a.org_id
                    and h.agent_id = a.id
                   left join (select org_id, agent_id, count(*) as lanes,
                                     sum(tail - head + 1)::bigint as deliveries
                                from delivery_lanes
                               where head <= tail and ($1::text is null or org_id = $1)
                                 and ($2::text is null or agent_id = $2)
                               group by org_id, agent_id) l on l.org_id = a.org_id
                                   and l.agent_id = a.id
                  where ($1::text is null or a.org_id = $1) and ($2::text is null or a.id = $2)
                  order by a.org_id, a.id) t",
        )
        .bind(org.map(OrgId::as_str))
        .bind(agent.map(AgentId::as_str))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(json).collect()
    }
}
