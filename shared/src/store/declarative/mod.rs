//! Declarative configuration: organizations, members, agents, apps and connections, applied in one
//! transaction.
//!
//! `tidegate apply` passes all declarations, and gets a [`Plan`] of the differences or a list of
//! conflicts, in which case nothing is applied. Secrets are compared in clear: sealing gives a
//! different text each time, and a repeated declaration must change nothing. Undeclared objects are
//! reported, and deleted only with `prune`. Connections that people installed are declared by their
//! app.

mod apps;
mod connections;
mod notifications;
mod organizations;
mod plan;
mod single;
mod single_connection;

pub use plan::{Plan, PlanAction, PlanStep};
pub use single_connection::ConnectionChange;

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
    /// Without one the existing endpoint stays, except with `prune`.
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

/// Deletion of what is not declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prune {
    /// Nothing is deleted.
    Nothing,
    /// Undeclared objects are deleted, except apps that have connections.
    Undeclared,
    /// Undeclared objects are deleted, apps with their connections.
    UndeclaredApps,
}

type Outcome = Result<Plan, Vec<ConflictError>>;

impl Store {
    /// Applies the declarations, or with `dry_run` only computes the plan. The traffic of deleted
    /// connections stays for [`Store::delete_connection`].
    pub async fn apply_declarations(
        &self,
        by: &Actor,
        declared: &Declarations,
        prune: Prune,
        dry_run: bool,
    ) -> Result<Outcome, StoreError> {
        let mut tx = self.pool.begin().await?;
        // Serializes applications, and briefly blocks the handling of webhooks.
        sqlx::query(
            "-- declared.lock
             lock table organizations, agents, apps, connections in share row exclusive mode",
        )
        .execute(&mut *tx)
        .await?;
        let mut plan = Plan::default();
        self.apply_organizations(&mut tx, declared, &mut plan).await?;
        let deletes = prune != Prune::Nothing;
        self.apply_members(&mut tx, declared, deletes, &mut plan).await?;
        self.apply_agents(&mut tx, declared, &mut plan).await?;
        let mut conflicts = self.apply_apps(&mut tx, declared, &mut plan).await?;
        let (undeclared, in_use) = apps::undeclared_apps(&mut tx, declared).await?;
        match prune {
            Prune::Nothing => plan.kept.extend(undeclared.iter().map(PlanObject::label)),
            Prune::Undeclared => conflicts.extend(in_use),
            Prune::UndeclaredApps => {}
        }
        conflicts.extend(self.apply_connections(&mut tx, declared, deletes, &mut plan).await?);
        if !conflicts.is_empty() {
            return Ok(Err(conflicts)); // the drop rolls back
        }
        if deletes {
            apps::delete_apps(&mut tx, undeclared, &mut plan).await?;
        }
        self.prune_owners(&mut tx, declared, deletes, &mut plan).await?;
        self.apply_notifications(&mut tx, declared, deletes, &mut plan).await?;
        if dry_run {
            tx.rollback().await?;
            return Ok(Ok(plan));
        }
        let entries: Vec<_> = plan.steps.iter().map(PlanStep::audit_entry).collect();
        add_audit_entries(&mut tx, by, &entries).await?;
        tx.commit().await?;
        Ok(Ok(plan))
    }
}
