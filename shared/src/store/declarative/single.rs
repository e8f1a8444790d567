//! Single organizations and agents, with the differences that a declaration would have.

use super::{Plan, PlanAction, PlanStep, organizations::apply_organization};
use crate::domain::{Actor, AgentId, AgentPolicies, OrgId};
use crate::secrets::Secret;
use crate::store::{
    AgentHeaders, AuditAction, AuditOrg, NewAgent, NewAuditEntry, Store, StoreError,
    add_audit_entries,
};
use sqlx::PgConnection;

impl Store {
    /// Creates an organization or changes its name. Returns the action, `None` without a
    /// difference.
    pub async fn save_organization(
        &self,
        by: &Actor,
        id: &OrgId,
        name: &str,
    ) -> Result<Option<PlanAction>, StoreError> {
        let (mut tx, mut plan) = (self.pool.begin().await?, Plan::default());
        let before = lock_organization(&mut tx, id).await?;
        apply_organization(&mut tx, id, name, before.as_deref(), &mut plan).await?;
        let action = record(&mut tx, by, &plan).await?;
        tx.commit().await?;
        Ok(action)
    }

    /// Creates or changes the agent that `new` returns. `new` gets `secret`, or the existing secret
    /// without one, and the existing headers and policies, which only declarations change. Returns
    /// the action, `None` without a difference, or the conflict of a new agent without a secret.
    /// [`StoreError::Missing`] for an unknown organization.
    pub async fn save_agent(
        &self,
        by: &Actor,
        (org, id): (&OrgId, &AgentId),
        secret: Option<Secret>,
        new: impl FnOnce(Secret, AgentHeaders, AgentPolicies) -> NewAgent,
    ) -> Result<Result<Option<PlanAction>, String>, StoreError> {
        let (mut tx, mut plan) = (self.pool.begin().await?, Plan::default());
        if lock_organization(&mut tx, org).await?.is_none() {
            return Err(StoreError::Missing(format!("organization {org}")));
        }
        // Read under the lock, because of concurrent changes.
        let before = self.agent_in(&mut *tx, org, id).await?;
        let kept = before.as_ref().map(|agent| (agent.headers.current.clone(), agent.policies));
        let (headers, policies) = kept.unwrap_or_default();
        let Some(secret) = secret.or(before.map(|agent| agent.secret)) else {
            return Ok(Err("a new agent needs a secret".into()));
        };
        self.apply_agent(&mut tx, &new(secret, headers, policies), &mut plan).await?;
        let action = record(&mut tx, by, &plan).await?;
        tx.commit().await?;
        Ok(Ok(action))
    }
}

impl Store {
    /// Deletes an agent with its bindings and link codes, unless it is the default agent of
    /// connections. Returns the number of these connections. Waiting deliveries end later.
    /// [`StoreError::Missing`] for an unknown agent.
    pub async fn delete_agent(
        &self,
        by: &Actor,
        org: &OrgId,
        id: &AgentId,
    ) -> Result<i64, StoreError> {
        let mut tx = self.pool.begin().await?;
        lock_organization(&mut tx, org).await?;
        let used: i64 = sqlx::query_scalar(
            "-- agents.uses\n select count(*) from connections where org_id = $1 and agent_id = $2",
        )
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_one(&mut *tx)
        .await?;
        if used > 0 {
            return Ok(used);
        }
        let deleted =
            sqlx::query("-- agents.delete\n delete from agents where org_id = $1 and id = $2")
                .bind(org.as_str())
                .bind(id.as_str())
                .execute(&mut *tx)
                .await?;
        let object = format!("{org}/{id}");
        if deleted.rows_affected() == 0 {
            return Err(StoreError::Missing(format!("agent {object}")));
        }
        let org = AuditOrg::Org(org.clone());
        let entry = NewAuditEntry::new(AuditAction::AgentDelete, object, org);
        add_audit_entries(&mut tx, by, &[entry]).await?;
        tx.commit().await?;
        Ok(0)
    }

    /// Deletes an organization with its agents, members and API keys. Returns the numbers of its
    /// connections and apps, and changes nothing unless both are 0. [`StoreError::Missing`] for an
    /// unknown organization.
    pub async fn delete_organization(
        &self,
        by: &Actor,
        id: &OrgId,
    ) -> Result<(i64, i64), StoreError> {
        let mut tx = self.pool.begin().await?;
        if lock_organization(&mut tx, id).await?.is_none() {
            return Err(StoreError::Missing(format!("organization {id}")));
        }
        let used: (i64, i64) = sqlx::query_as(
            "-- organizations.uses
             select (select count(*) from connections where org_id = $1),
                    (select count(*) from apps where org_id = $1)",
        )
        .bind(id.as_str())
        .fetch_one(&mut *tx)
        .await?;
        if used != (0, 0) {
            return Ok(used);
        }
        sqlx::query(
            "-- organizations.delete
             with gone as (delete from organization_members where org_id = $1 returning user_id),
             identities as (
                 delete from user_identities i using gone g
                  where i.user_id = g.user_id
                    and not exists (select from organization_members m
                                     where m.user_id = g.user_id and m.org_id <> $1))
             delete from organizations where id = $1",
        )
        .bind(id.as_str())
        .execute(&mut *tx)
        .await?;
        let org = AuditOrg::Org(id.clone());
        let entry = NewAuditEntry::new(AuditAction::OrganizationDelete, id, org);
        add_audit_entries(&mut tx, by, &[entry]).await?;
        tx.commit().await?;
        Ok((0, 0))
    }
}

/// Serializes changes of an organization and its agents. Returns its name.
pub(super) async fn lock_organization(
    tx: &mut PgConnection,
    id: &OrgId,
) -> Result<Option<String>, StoreError> {
    let name = sqlx::query_scalar(
        "-- declared.lock_organization\n select name from organizations where id = $1 for update",
    );
    Ok(name.bind(id.as_str()).fetch_optional(tx).await?)
}

pub(super) async fn record(
    tx: &mut PgConnection,
    by: &Actor,
    plan: &Plan,
) -> Result<Option<PlanAction>, StoreError> {
    let entries: Vec<_> = plan.steps.iter().map(PlanStep::audit_entry).collect();
    add_audit_entries(tx, by, &entries).await?;
    Ok(plan.steps.first().map(|step| step.action))
}
