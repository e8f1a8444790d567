//! Operations on connections.

use super::{OperationError, Operations, Result, directory};
use crate::{
    domain::{AgentId, ConnectionId, ConnectionStatus, OrgId, UserId},
    secrets::Secret,
    store::{
        ConnectionChange, ConversationKey, DeclaredConnection, DeletedConnection, LimitedKind,
        NewTokenRotation,
    },
};
use async_nats::jetstream;
use std::time::Duration;

impl Operations {
    /// Creates a connection, and waits until every live ingest has it. Returns its id.
    pub async fn create_connection(
        &self,
        js: &jetstream::Context,
        new: &DeclaredConnection,
    ) -> Result<ConnectionId> {
        self.require_org(&new.org, || format!("organization {}", new.org))?;
        self.require_signing_ring()?;
        if new.team.is_none() && new.enterprise.is_none() && !new.preview_mode {
            let why = "a connection needs a team, an enterprise, or preview_mode";
            return Err(OperationError::Conflict(why.into()));
        }
        // Webhooks of an app that others share are routed by its own secret: a connection of it
        // comes from an installation or from an author of all organizations.
        if let Some(own) = &self.org
            && self.store.is_app_of_others(&new.app, own).await?
        {
            return Err(OperationError::NotFound(format!("app {} of organization {own}", new.app)));
        }
        self.require_capacity(&new.org, LimitedKind::Connection).await?;
        let created = self.store.create_declared_connection(&self.actor, new).await?;
        let id = created.map_err(OperationError::Conflict)?;
        directory::publish(&self.store, js, &[id]).await?;
        Ok(id)
    }

    /// Changes a connection, and waits until every live ingest has applied the change.
    pub async fn change_connection(
        &self,
        js: &jetstream::Context,
        id: ConnectionId,
        change: ConnectionChange,
    ) -> Result<()> {
        self.require_connection(id).await?;
        self.require_signing_ring()?;
        let changed = self.store.change_connection(&self.actor, id, change).await?;
        changed.map_err(OperationError::Conflict)?;
        directory::publish(&self.store, js, &[id]).await
    }

    /// Disables or enables a connection, and waits until every live ingest has applied the change.
    pub async fn set_connection_enabled(
        &self,
        js: &jetstream::Context,
        id: ConnectionId,
        enabled: bool,
    ) -> Result<ConnectionStatus> {
        self.require_connection(id).await?;
        let status = if enabled { ConnectionStatus::Active } else { ConnectionStatus::Stopped };
        let set = self.store.set_connection_status(&self.actor, id, status).await?;
        if set != status {
            return Err(OperationError::Conflict(format!(
                "failed to change connection {id}: its tokens are revoked; \
                 install the app again and declare its new bot_token with tidegate apply"
            )));
        }
        directory::publish(&self.store, js, &[id]).await?;
        Ok(set)
    }

    /// Replaces the signing secret of a connection, and waits until every live ingest has it. The
    /// previous one stays valid for `overlap`.
    pub async fn rotate_signing_secret(
        &self,
        js: &jetstream::Context,
        id: ConnectionId,
        secret: &Secret,
        overlap: Duration,
    ) -> Result<()> {
        self.require_connection(id).await?;
        self.require_signing_ring()?;
        self.store.rotate_signing_secret(&self.actor, id, secret, overlap).await?;
        directory::publish(&self.store, js, &[id]).await
    }

    /// Starts the rotation of a connection's bot token.
    pub async fn enable_token_rotation(&self, rotation: &NewTokenRotation) -> Result<()> {
        self.require_connection(rotation.connection).await?;
        Ok(self.store.enable_token_rotation(&self.actor, rotation).await?)
    }

    /// Pauses or resumes calls to Slack for a connection. Returns whether anything changed.
    pub async fn set_sending_paused(&self, id: ConnectionId, paused: bool) -> Result<bool> {
        self.require_connection(id).await?;
        Ok(if paused {
            self.store.pause_sending(&self.actor, id).await?
        } else {
            self.store.resume_sending(&self.actor, id).await?
        })
    }

    /// Binds a conversation to an agent, on behalf of a person in Slack or of the app.
    pub async fn save_binding(
        &self,
        conversation: &ConversationKey,
        (org, agent): (&OrgId, &AgentId),
        bound_by: Option<&UserId>,
    ) -> Result<()> {
        self.require_connection(conversation.connection).await?;
        let missing = || format!("agent {org}/{agent}");
        self.require_org(org, missing)?;
        if self.store.connection_org(conversation.connection).await?.is_none() {
            let missing = format!("connection {}", conversation.connection);
            return Err(OperationError::NotFound(missing));
        }
        if self.store.save_binding(&self.actor, conversation, (org, agent), bound_by).await? {
            return Ok(());
        }
        match self.store.agent_states(Some(org), Some(agent)).await?.is_empty() {
            true => Err(OperationError::NotFound(missing())),
            false => Err(OperationError::Conflict(
                "the connection allows no apps of other organizations; enable foreign_apps".into(),
            )),
        }
    }

    /// Removes the binding of a conversation.
    pub async fn delete_binding(&self, conversation: &ConversationKey) -> Result<()> {
        self.require_connection(conversation.connection).await?;
        match self.store.delete_binding(&self.actor, conversation).await? {
            true => Ok(()),
            false => Err(OperationError::NotFound("binding".into())),
        }
    }

    /// Deletes a connection and its data in Postgres, the directory and the stream. Returns the
    /// numbers of deleted rows and of purged webhooks. An interrupted deletion can be repeated.
    pub async fn delete_connection(
        &self,
        js: &jetstream::Context,
        id: ConnectionId,
    ) -> Result<(DeletedConnection, u64)> {
        self.require_connection(id).await?;
        // Ingests stop accepting webhooks before anything is deleted.
        self.store.begin_connection_deletion(&self.actor, id).await?;
        directory::publish(&self.store, js, &[id]).await?;
        if !self.deletes_traffic {
            let deleted = self.store.delete_connection_row(id).await?;
            directory::publish_tombstone(&self.store, js, id).await?;
            return Ok((deleted, 0));
        }
        let deleted = self.store.delete_connection(id).await?;
        directory::publish_tombstone(&self.store, js, id).await?;
        Ok((deleted, directory::purge_webhooks(&self.store, js, id).await?))
    }
}
