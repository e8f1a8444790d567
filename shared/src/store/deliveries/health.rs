//! Open circuit breakers, shared by all workers. A row exists while one is open.

use crate::store::{Store, StoreError, replace_nul};
use std::collections::HashSet;

impl Store {
    /// Records that an agent's circuit breaker opened. The first probe is due in a second.
    pub async fn open_circuit(
        &self,
        org: &str,
        agent: &str,
        error: &str,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "-- agent_health.open
             insert into agent_health (org_id, agent_id, probe_at, last_error)
             select $1, $2, now() + interval '1 s', $3
              where exists (select from agents where org_id = $1 and id = $2)
             on conflict do nothing",
        )
        .bind(org)
        .bind(agent)
        .bind(replace_nul(error))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Records that an agent's circuit breaker closed.
    pub async fn close_circuit(&self, org: &str, agent: &str) -> Result<(), StoreError> {
        sqlx::query(
            "-- agent_health.close\n delete from agent_health where org_id = $1 and agent_id = $2",
        )
        .bind(org)
        .bind(agent)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Returns the agents with an open circuit breaker, by organization and id.
    pub async fn open_circuits(&self) -> Result<HashSet<(String, String)>, StoreError> {
        let open =
            sqlx::query_as("-- agent_health.list\n select org_id, agent_id from agent_health");
        Ok(open.fetch_all(&self.pool).await?.into_iter().collect())
    }
}
