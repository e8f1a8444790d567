//! Operations: changes by people and programs, the same for command line and control API.
//!
//! An operation checks its arguments and the author's organization, changes the store together
//! with the audit log, and returns when every ingest has applied the change. Workers cause changes
//! with webhooks, whose commit adds to the audit log itself.

mod agents;
mod api_keys;
mod connections;
mod declaration_file;
mod declarations;
mod directory;
mod erasure;
mod installs;
mod link_codes;
mod members;
mod traffic;

pub use agents::AgentSettings;
pub use api_keys::MAX_API_KEY_TTL;
pub use declaration_file::{DeclarationFile, FileProblem, read_declarations};
pub use directory::purge_webhooks;
pub use erasure::{ERASURE_INTERVAL, ErasedOrganization, ErasedPerson};
pub use installs::{InstallResult, MAX_INSTALL_LINK_TTL};
pub use link_codes::MAX_LINK_CODE_TTL;
pub use traffic::ReplayRequest;

use crate::{
    directory::{DirectoryError, DirectoryTimeoutError},
    domain::{Actor, ConnectionId, OrgId},
    store::{LimitedKind, Store, StoreError},
};

/// Operations of an author on all organizations, or on one.
pub struct Operations {
    store: Store,
    actor: Actor,
    org: Option<OrgId>,
    deletes_traffic: bool,
}

/// Failure of an operation.
#[derive(Debug, thiserror::Error)]
pub enum OperationError {
    /// The object does not exist, or belongs to another organization.
    #[error("{0} does not exist")]
    NotFound(String),
    /// An argument is not allowed.
    #[error("{0}")]
    Invalid(String),
    /// The state of the object does not allow the operation.
    #[error("{0}")]
    Conflict(String),
    /// Postgres failed.
    #[error(transparent)]
    Store(StoreError),
    /// The directory failed.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// The change is stored, and an ingest has not applied it.
    #[error(transparent)]
    NotApplied(#[from] DirectoryTimeoutError),
    /// The stream failed.
    #[error("failed to delete webhooks of the connection from the stream")]
    Stream(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<StoreError> for OperationError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Missing(object) => Self::NotFound(object),
            error => Self::Store(error),
        }
    }
}

type Result<T> = std::result::Result<T, OperationError>;

impl Operations {
    /// Returns the operations of an author on all organizations.
    pub fn new(store: Store, actor: Actor) -> Self {
        Self { store, actor, org: None, deletes_traffic: true }
    }

    /// Leaves the traffic of deleted connections, in Postgres and the stream, to the workers, which
    /// delete it within a minute.
    pub fn without_traffic_deletion(self) -> Self {
        Self { deletes_traffic: false, ..self }
    }

    /// Limits the operations to objects of an organization. Those of others count as missing.
    pub fn within(self, org: Option<OrgId>) -> Self {
        Self { org, ..self }
    }

    /// Fails unless the author may change objects of the organization.
    fn require_org(&self, org: &OrgId, object: impl FnOnce() -> String) -> Result<()> {
        match &self.org {
            Some(own) if own != org => Err(OperationError::NotFound(object())),
            _ => Ok(()),
        }
    }

    /// Fails if an organization has the maximum number of objects of a kind.
    async fn require_capacity(&self, org: &OrgId, kind: LimitedKind) -> Result<()> {
        match self.store.has_capacity(org, kind).await? {
            true => Ok(()),
            false => Err(OperationError::Conflict(format!(
                "organization {org} has the maximum of {} {}",
                kind.limit(),
                kind.name()
            ))),
        }
    }

    /// Fails unless the author may change all organizations.
    fn require_all_orgs(&self) -> Result<()> {
        match self.org {
            None => Ok(()),
            Some(_) => {
                Err(OperationError::Invalid("the operation affects all organizations".into()))
            }
        }
    }

    /// Fails unless the store can seal signing secrets.
    fn require_signing_ring(&self) -> Result<()> {
        match self.store.seals_signing_secrets() {
            true => Ok(()),
            false => Err(OperationError::Conflict(
                "this program has no keyring of signing secrets; \
                 set TIDEGATE_SIGNING_SECRET_KEYRING"
                    .into(),
            )),
        }
    }

    /// Fails unless the author may change the connection. Only authors of all organizations move
    /// one to another organization.
    async fn require_connection(&self, id: ConnectionId) -> Result<()> {
        let Some(own) = &self.org else { return Ok(()) };
        match self.store.connection_org(id).await? {
            Some(org) if org == *own => Ok(()),
            _ => Err(OperationError::NotFound(format!("connection {id}"))),
        }
    }
}
