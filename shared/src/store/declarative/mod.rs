//! What an operator declares, brought about: organizations, members, agents and connections, in one transaction.
//!
//! In: everything declared. Out: a [`Plan`] of what differed, applied unless only asked for; or what clashes, and then
//! nothing is applied. Secrets are compared in clear, so that declaring the same again changes nothing although sealing
//! never gives the same text twice. What is not declared is named, and deleted only when told to.

mod connections;
mod organizations;
mod plan;

pub use plan::{Action, Plan, PlanStep};

use super::{NewAgent, Store, StoreError};
use crate::{
    secrets::Secret,
    types::{AgentId, AppId, ConnectionId, EnterpriseId, OrgId, Settings, TeamId, UserId},
};

/// Everything declared.
#[derive(Debug, Default)]
#[allow(missing_docs)] // the tables' names
pub struct Declared {
    pub organizations: Vec<(OrgId, String)>,
    pub members: Vec<DeclaredMember>,
    pub agents: Vec<NewAgent>,
    pub connections: Vec<DeclaredConnection>,
}

/// Somebody who may link an organization's agents by name, and who they are in Slack.
#[derive(Debug)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct DeclaredMember {
    pub org: OrgId,
    pub user: String,
    pub identities: Vec<(TeamId, UserId)>,
}

/// A connection, called by its app and installation; its id is made up when it is new and none is given.
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

/// What can't be brought about. Nothing was.
#[derive(Debug)]
pub struct Clash {
    /// Which of the declared connections, by its place in the list.
    pub connection: usize,
    /// What is wrong, and what to do.
    pub why: String,
}

type Outcome = Result<Plan, Vec<Clash>>;

impl Store {
    /// Brings about what is declared, or, as a dry run, only says what that would change.
    pub async fn apply_declared(
        &self,
        declared: &Declared,
        prune: bool,
        dry_run: bool,
    ) -> Result<Outcome, StoreError> {
        let mut tx = self.pool.begin().await?;
        // Two of these take turns; whoever handles webhooks waits for this one a moment.
        sqlx::query("-- declared.lock\n lock table organizations, agents, connections in share row exclusive mode")
            .execute(&mut *tx)
            .await?;
        let mut plan = Plan::default();
        self.organizations(&mut tx, declared, &mut plan).await?;
        self.members(&mut tx, declared, prune, &mut plan).await?;
        self.agents(&mut tx, declared, &mut plan).await?;
        let clashes = self.connections(&mut tx, declared, prune, &mut plan).await?;
        if !clashes.is_empty() {
            return Ok(Err(clashes)); // dropping the transaction undoes it
        }
        self.undeclared_owners(&mut tx, declared, prune, &mut plan).await?;
        if dry_run {
            tx.rollback().await?;
            return Ok(Ok(plan));
        }
        tx.commit().await?;
        for &deleted in &plan.deleted {
            self.delete_connection(deleted).await?; // its traffic
        }
        Ok(Ok(plan))
    }
}
