//! Open circuit breakers, shared by all workers. A row exists while one is open.

use crate::store::{Store, StoreError, replace_nul};
use std::collections::HashSet;

/// Maximum number of open circuit breakers that are counted.
const CIRCUITS_COUNTED_MAX: i64 = 1_000;

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

    /// Returns those of the agents, by organization and id, that have an open circuit breaker.
    pub async fn open_circuits(
        &self,
        agents: &[(String, String)],
    ) -> Result<HashSet<(String, String)>, StoreError> {
        if agents.is_empty() {
            return Ok(HashSet::new());
        }
        let open = sqlx::query_as(
            "-- agent_health.open_among
             select h.org_id, h.agent_id from unnest($1::text[], $2::text[]) u (org_id, agent_id)
               join agent_health h on h.org_id = u.org_id and h.agent_id = u.agent_id",
        )
        .bind(agents.iter().map(|(org, _)| org.as_str()).collect::<Vec<_>>())
        .bind(agents.iter().map(|(_, agent)| agent.as_str()).collect::<Vec<_>>());
        Ok(open.fetch_all(&self.pool).await?.into_iter().collect())
    }

    /// Counts the agents with an open circuit breaker, up to [`CIRCUITS_COUNTED_MAX`].
    pub async fn count_open_circuits(&self) -> Result<i64, StoreError> {
        let count = sqlx::query_scalar(
            "-- agent_health.count
             select count(*) from (select from agent_health limit $1) h",
        );
        Ok(count.bind(CIRCUITS_COUNTED_MAX).fetch_one(&self.pool).await?)
    }
}
