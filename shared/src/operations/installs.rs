//! Operations on installations: links, and the connections that they create.

use super::{OperationError, Operations, Result, directory};
use crate::{
    domain::{AgentId, ConnectionId, InstallLink, OrgId, is_return_url_allowed},
    secrets::Secret,
    store::{FoundInstallLink, LimitedKind, NewInstallLink, NewInstallation, RecordedInstallation},
};
use async_nats::jetstream;
use std::time::Duration;

/// Maximum lifetime of an install link.
pub const MAX_INSTALL_LINK_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// Result of an installation.
#[derive(Debug)]
pub enum InstallResult {
    /// Every live ingest has the connection.
    Installed(ConnectionId),
    /// The workspace belongs to another organization.
    OtherOrganization,
    /// The organization has the maximum of connections.
    TooManyConnections,
    /// The link was revoked, or was used for another workspace.
    LinkUsed,
    /// Another installation of the workspace was recorded since this one began. Its token stays if
    /// Slack accepts it.
    Contested {
        /// Connection.
        connection: ConnectionId,
        /// Version of its row.
        version: i64,
        /// Its token.
        token: Secret,
    },
}

impl Operations {
    /// Creates an install link. Only this call returns it, with the address of the control API that
    /// the app declares.
    pub async fn create_install_link(&self, new: &NewInstallLink) -> Result<(InstallLink, String)> {
        if new.ttl > MAX_INSTALL_LINK_TTL || new.ttl.is_zero() {
            return Err(OperationError::Invalid(
                "the lifetime of an install link must be above 0 and at most 30d".into(),
            ));
        }
        self.require_org(&new.org, || format!("organization {}", new.org))?;
        let missing = || OperationError::NotFound(format!("app {}", new.app));
        let settings = self.store.app_addresses(&new.app).await?;
        let (redirect_url, return_urls) = settings.ok_or_else(missing)?;
        if let Some(url) = &new.return_url
            && !is_return_url_allowed(url, &return_urls)
        {
            return Err(OperationError::Invalid(
                "return_url must be below one of the app's return_urls".into(),
            ));
        }
        self.require_capacity(&new.org, LimitedKind::FoundInstallLink).await?;
        Ok((self.store.create_install_link(&self.actor, new).await?, redirect_url))
    }

    /// Revokes an install link that was not used.
    pub async fn revoke_install_link(&self, org: &OrgId, id: &str) -> Result<()> {
        let missing = || format!("open install link {id}");
        self.require_org(org, missing)?;
        match self.store.revoke_install_link(&self.actor, org, id).await? {
            true => Ok(()),
            false => Err(OperationError::NotFound(missing())),
        }
    }

    /// Records an installation, and returns when every live ingest has the connection. `replaces`
    /// is the version of a contested connection whose token Slack does not take.
    pub async fn install_connection(
        &self,
        js: &jetstream::Context,
        new: &NewInstallation,
        replaces: Option<i64>,
    ) -> Result<InstallResult> {
        match self.store.record_installation(&self.actor, new, replaces).await? {
            RecordedInstallation::Installed(connection) => {
                directory::publish(&self.store, js, &[connection]).await?;
                Ok(InstallResult::Installed(connection))
            }
            RecordedInstallation::OtherOrganization => Ok(InstallResult::OtherOrganization),
            RecordedInstallation::TooManyConnections => Ok(InstallResult::TooManyConnections),
            RecordedInstallation::LinkUsed => Ok(InstallResult::LinkUsed),
            RecordedInstallation::Contested { connection, version, token } => {
                Ok(InstallResult::Contested { connection, version, token })
            }
        }
    }

    /// Keeps a contested connection, whose token Slack takes, and returns when every live ingest
    /// has it.
    pub async fn keep_installation(
        &self,
        js: &jetstream::Context,
        link: &FoundInstallLink,
        connection: ConnectionId,
    ) -> Result<InstallResult> {
        if !self.store.use_install_link(link, connection).await? {
            return Ok(InstallResult::LinkUsed);
        }
        directory::publish(&self.store, js, &[connection]).await?;
        Ok(InstallResult::Installed(connection))
    }

    /// Moves a connection to another organization and replaces its default agent. Its bindings
    /// stay.
    pub async fn move_connection(
        &self,
        js: &jetstream::Context,
        id: ConnectionId,
        org: &OrgId,
        agent: Option<&AgentId>,
    ) -> Result<()> {
        self.require_all_orgs()?;
        self.store.move_connection(&self.actor, id, org, agent).await?;
        directory::publish(&self.store, js, &[id]).await
    }
}
