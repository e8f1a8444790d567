//! Who a Slack user is among our own users, and which agents that lets them link by name.
//!
//! Declared by an operator, never inferred: that somebody used a code says nothing about who they are.

use crate::store::{Store, StoreError, column};
use crate::types::{AgentId, OrgId, Platform, TeamId, UserId};
use sqlx::Row;

/// An agent, as people call it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedAgent {
    /// Its organization.
    pub org: OrgId,
    /// Its id.
    pub agent: AgentId,
    /// Its name, or its id when it has none.
    pub name: String,
}

impl Store {
    /// The agents of this id that a person may link without a code: one per organization they are a member of.
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
              where i.platform = $1 and i.team_id = $2 and i.platform_user_id = $3 order by a.org_id",
        )
        .bind(platform.as_str())
        .bind(team.as_str())
        .bind(user.as_str())
        .bind(agent.as_str())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(named).collect()
    }

    /// The agents of an organization, by name.
    pub async fn agents_of(&self, org: &OrgId) -> Result<Vec<NamedAgent>, StoreError> {
        let rows = sqlx::query(
            "-- agents.of
             select org_id, id, coalesce(nullif(name, ''), id) as name from agents where org_id = $1 order by id",
        )
        .bind(org.as_str())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(named).collect()
    }
}

fn named(row: &sqlx::postgres::PgRow) -> Result<NamedAgent, StoreError> {
    let key: String = row.try_get("id")?;
    Ok(NamedAgent {
        org: column(row, "agents", &key, "org_id")?,
        agent: column(row, "agents", &key, "id")?,
        name: row.try_get("name")?,
    })
}
