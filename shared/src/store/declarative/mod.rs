//! Declarative configuration: organizations, members, agents, apps and connections, applied in one
//! transaction.
//!
//! `tidegate apply` passes all declarations, and gets a [`Plan`] of the differences or a list of
//! conflicts, in which case nothing is applied. Secrets are compared as plaintext: sealing gives a
//! different ciphertext each time, and a repeated declaration must change nothing. Undeclared
//! objects are reported, and deleted only with `prune`. Connections that people installed are
//! declared by their app.

mod apps;
mod connections;
mod notifications;
mod organizations;
mod plan;
mod single;
mod single_connection;
mod single_member;

pub use plan::{Plan, PlanAction, PlanStep, PlanSummary, StepSummary};
pub use single_connection::ConnectionChange;
pub use single_member::{MemberRecord, SavedMember};

use plan::PlanObject;

use super::{NewAgent, NewApp, NotificationEndpoint, Store, StoreError, add_audit_entries};
use crate::{
    domain::{
        Actor, AgentId, AppId, ConnectionId, ConnectionSettings, EnterpriseId, OrgId, TeamId,
        UserId,
    },
    secrets::Secret,
};

/// All declarations.
#[derive(Debug, Default)]
#[allow(missing_docs)] // the tables' names
pub struct Declarations {
    pub organizations: Vec<(OrgId, String)>,
    pub members: Vec<DeclaredMember>,
    pub agents: Vec<NewAgent>,
    pub apps: Vec<NewApp>,
    pub connections: Vec<DeclaredConnection>,
    /// `None` keeps the existing endpoint, except with `prune`.
    pub notifications: Option<NotificationEndpoint>,
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
    /// `None`: that of the app, which is declared.
    pub signing_secret: Option<Secret>,
    pub bot_token: Option<Secret>,
    pub bot_user: Option<UserId>,
    pub settings: ConnectionSettings,
}

/// Conflict that prevents the application of all declarations.
#[derive(Debug)]
pub struct ConflictError {
    /// Declaration.
    pub at: Declared,
    /// Cause and remedy.
    pub why: String,
}

/// Declaration with a conflict.
#[derive(Debug, Clone, Copy)]
pub enum Declared {
    /// Index of the app.
    App(usize),
    /// Index of the connection.
    Connection(usize),
    /// An object is not declared.
    Nothing,
}

/// Mode of applying declarations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ApplyMode {
    /// Undeclared objects are deleted.
    pub prune: bool,
    /// The author has confirmed deletions. Without it a plan that deletes is not applied, and an
    /// undeclared app that has connections is a conflict.
    pub confirmed: bool,
    /// Only the plan is computed.
    pub dry_run: bool,
}

type Outcome = Result<Plan, Vec<ConflictError>>;

impl Store {
    /// Applies the declarations, or only computes the plan. Leaves the traffic of deleted
    /// connections to [`Store::delete_connection`].
    pub async fn apply_declarations(
        &self,
        by: &Actor,
        declared: &Declarations,
        mode: ApplyMode,
    ) -> Result<Outcome, StoreError> {
        let mut tx = self.pool.begin().await?;
        // Serializes calls, and briefly blocks commits that change these tables.
        sqlx::query(
            "-- declared.lock
             lock table organizations, agents, apps, connections in share row exclusive mode",
        )
        .execute(&mut *tx)
        .await?;
        let mut plan = Plan::default();
        self.apply_organizations(&mut tx, declared, &mut plan).await?;
        let prune = mode.prune;
        self.apply_members(&mut tx, declared, prune, &mut plan).await?;
        self.apply_agents(&mut tx, declared, &mut plan).await?;
        let mut conflicts = self.apply_apps(&mut tx, declared, &mut plan).await?;
        let (undeclared, in_use) = apps::undeclared_apps(&mut tx, declared).await?;
        match (prune, mode.confirmed) {
            (false, _) => plan.kept.extend(undeclared.iter().map(PlanObject::label)),
            (true, false) => conflicts.extend(in_use),
            (true, true) => {}
        }
        conflicts.extend(self.apply_connections(&mut tx, declared, prune, &mut plan).await?);
        if !conflicts.is_empty() {
            return Ok(Err(conflicts)); // the drop rolls back
        }
        if prune {
            apps::delete_apps(&mut tx, undeclared, &mut plan).await?;
        }
        self.prune_owners(&mut tx, declared, prune, &mut plan).await?;
        self.apply_notifications(&mut tx, declared, prune, &mut plan).await?;
        let deletes = plan.steps.iter().any(|step| step.action == PlanAction::Delete);
        if mode.dry_run || (deletes && !mode.confirmed) {
            tx.rollback().await?;
            plan.remove_random_ids();
            return Ok(Ok(plan));
        }
        let entries: Vec<_> = plan.steps.iter().map(PlanStep::audit_entry).collect();
        add_audit_entries(&mut tx, by, &entries).await?;
        tx.commit().await?;
        plan.is_applied = true;
        Ok(Ok(plan))
    }
}
