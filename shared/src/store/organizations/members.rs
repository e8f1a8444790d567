//! Identities of Slack users, and the agents that members may bind by name.
//!
//! Operators declare identities. The use of a link code proves no identity.

use crate::domain::{AgentId, OrgId, Platform, TeamId, UserId};
use crate::store::{Store, StoreError, column};
use sqlx::Row;

/// Agent with its display name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedAgent {
    /// Organization.
    pub org: OrgId,
    /// Id.
    pub agent: AgentId,
    /// Name, or the id if there is none.
    pub name: String,
}

impl Store {
    /// Returns the agents with this id in the organizations of a person, which may be bound without
    /// a code.
    pub async fn linkable_agents(
        &self,
        platform: Platform,
        team: &TeamId,
        user: &UserId,
        agent: &AgentId,
    ) -> Result<Vec<NamedAgent>, StoreError> {
        let rows = sqlx::query(
            "-- identities.linkable_agents
             select a.org_id, a.id, coalesce(nullif(a.name, ''), a.id) as name
               from user_identities i
               join organization_members m on m.user_id = i.user_id
               join agents a on a.org_id = m.org_id and a.id = $4
              where i.platform = $1 and i.team_id = $2 and i.platform_user_id = $3
              order by a.org_id",
        )
        .bind(platform.as_str())
        .bind(team.as_str())
        .bind(user.as_str())
        .bind(agent.as_str())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(named_agent).collect()
    }

    /// Returns the agents of an organization, ordered by id.
    pub async fn organization_agents(&self, org: &OrgId) -> Result<Vec<NamedAgent>, StoreError> {
        let rows = sqlx::query(
            "-- agents.of
             select org_id, id, coalesce(nullif(name, ''), id) as name from agents where org_id = $1
              order by id",
        )
        .bind(org.as_str())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(named_agent).collect()
    }
}

fn named_agent(row: &sqlx::postgres::PgRow) -> Result<NamedAgent, StoreError> {
    let key: String = row.try_get("id")?;
    Ok(NamedAgent {
        org: column(row, "agents", &key, "org_id")?,
        agent: column(row, "agents", &key, "id")?,
        name: row.try_get("name")?,
    })
}
