//! Declarative configuration: organizations, members, agents and connections, applied in one
//! transaction.
//!
//! `tidegate apply` passes all declarations, and gets a [`Plan`] of the differences or a list of
//! conflicts, in which case nothing is applied. Secrets are compared in clear: sealing gives a
//! different text each time, and a repeated declaration must change nothing. Undeclared objects are
//! reported, and deleted only with `prune`.

mod connections;
mod organizations;
mod plan;

pub use plan::{Action, Plan, PlanStep};

use super::{NewAgent, Store, StoreError};
use crate::{
    secrets::Secret,
    types::{AgentId, AppId, ConnectionId, EnterpriseId, OrgId, Settings, TeamId, UserId},
};

/// All declarations.
#[derive(Debug, Default)]
#[allow(missing_docs)] // the tables' names
pub struct Declared {
    pub organizations: Vec<(OrgId, String)>,
    pub members: Vec<DeclaredMember>,
    pub agents: Vec<NewAgent>,
    pub connections: Vec<DeclaredConnection>,
}

/// Member who may bind an organization's agents by name, with identities in Slack.
#[derive(Debug)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct DeclaredMember {
    pub org: OrgId,
    pub user: String,
    pub identities: Vec<(TeamId, UserId)>,
}

/// Connection, identified by app and installation. A new one without an id gets a random id.
#[derive(Debug)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct DeclaredConnection {
    pub id: Option<ConnectionId>,
    pub org: OrgId,
    pub agent: Option<AgentId>,
    pub app: AppId,
    pub enterprise: Option<EnterpriseId>,
    pub team: Option<TeamId>,
    pub preview_mode: bool,
    pub signing_secret: Secret,
    pub bot_token: Option<Secret>,
    pub bot_user: Option<UserId>,
    pub settings: Settings,
}

/// Conflict that prevents the application of all declarations.
#[derive(Debug)]
pub struct Clash {
    /// Index of the declared connection.
    pub connection: usize,
    /// Cause and remedy.
    pub why: String,
}

type Outcome = Result<Plan, Vec<Clash>>;

impl Store {
    /// Applies the declarations, or with `dry_run` only computes the plan.
    pub async fn apply_declared(
        &self,
        declared: &Declared,
        prune: bool,
        dry_run: bool,
    ) -> Result<Outcome, StoreError> {
        let mut tx = self.pool.begin().await?;
        // Serializes applications, and briefly blocks the handling of webhooks.
        sqlx::query(
            "-- declared.lock
             lock table organizations, agents, connections in share row exclusive mode",
        )
        .execute(&mut *tx)
        .await?;
        let mut plan = Plan::default();
        self.organizations(&mut tx, declared, &mut plan).await?;
        self.members(&mut tx, declared, prune, &mut plan).await?;
        self.agents(&mut tx, declared, &mut plan).await?;
        let clashes = self.connections(&mut tx, declared, prune, &mut plan).await?;
        if !clashes.is_empty() {
            return Ok(Err(clashes)); // the drop rolls back
        }
        self.undeclared_owners(&mut tx, declared, prune, &mut plan).await?;
        if dry_run {
            tx.rollback().await?;
            return Ok(Ok(plan));
        }
        tx.commit().await?;
        for &deleted in &plan.deleted {
            self.delete_connection(deleted).await?; // deletes traffic
        }
        Ok(Ok(plan))
    }
}
