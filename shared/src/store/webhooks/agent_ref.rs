//! Look-up of one agent for a decision.

use super::{
    AgentRef,
    facts::{display_name, policies, readable},
};
use crate::domain::{AgentId, OrgId};
use crate::store::{Store, StoreError, column};
use sqlx::Row;

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
