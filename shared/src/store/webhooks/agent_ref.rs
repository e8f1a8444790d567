//! Look-up of one agent for a decision.

use super::{AgentRef, facts::readable};
use crate::domain::{AgentId, AgentPolicies, OrgId};
use crate::store::{Store, StoreError, column};
use sqlx::{Row, postgres::PgRow};

impl Store {
    /// Returns an agent for a decision. `None` if it does not exist or is unreadable.
    pub async fn agent_ref(
        &self,
        org: &OrgId,
        id: &AgentId,
    ) -> Result<Option<AgentRef>, StoreError> {
        let row = sqlx::query(
            "-- intake.agent
             select name, mode, max_per_user, edits, overlap from agents
              where org_id = $1 and id = $2",
        )
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let key = format!("{org}/{id}");
        let agent = || -> Result<AgentRef, StoreError> {
            Ok(AgentRef {
                org: org.clone(),
                name: display_name(&row, "name", id)?,
                id: id.clone(),
                mode: column(&row, "agents", &key, "mode")?,
                max_per_user: row.try_get("max_per_user")?,
                policies: policies(&row, &key, ["edits", "overlap"])?,
            })
        };
        Ok(readable(agent())?.ok())
    }
}

pub(super) fn policies(
    row: &PgRow,
    key: &str,
    [edits, overlap]: [&'static str; 2],
) -> Result<AgentPolicies, StoreError> {
    let overlap = column(row, "agents", key, overlap)?;
    Ok(AgentPolicies { edits: column(row, "agents", key, edits)?, overlap })
}

pub(super) fn display_name(row: &PgRow, column: &str, id: &AgentId) -> Result<String, StoreError> {
    let name: String = row.try_get(column)?;
    Ok(if name.is_empty() { id.to_string() } else { name })
}
