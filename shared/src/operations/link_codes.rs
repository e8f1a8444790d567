//! Operations on link codes.

use super::{OperationError, Operations, Result};
use crate::{
    domain::LinkCode,
    store::{LimitedKind, NewLinkCode},
};
use std::time::Duration;

/// Maximum lifetime of a link code.
pub const MAX_LINK_CODE_TTL: Duration = Duration::from_secs(3600);

impl Operations {
    /// Creates a link code. Only this call returns the code.
    pub async fn create_link_code(&self, new: &NewLinkCode) -> Result<LinkCode> {
        if new.ttl > MAX_LINK_CODE_TTL {
            return Err(OperationError::Invalid("a link code is valid for 1h at most".into()));
        }
        if new.ttl.is_zero() || new.surfaces.is_empty() {
            return Err(OperationError::Invalid(
                "a link code needs a lifetime and a surface".into(),
            ));
        }
        self.require_org(&new.org, || format!("agent {}/{}", new.org, new.agent))?;
        if let Some(connection) = new.connection {
            self.require_connection(connection).await?;
        }
        self.require_capacity(&new.org, LimitedKind::OpenLinkCode).await?;
        Ok(self.store.create_link_code(&self.actor, new).await?)
    }

    /// Revokes a link code that was not used.
    pub async fn revoke_link_code(&self, id: &str) -> Result<()> {
        match self.store.revoke_link_code(&self.actor, id, self.org.as_ref()).await? {
            true => Ok(()),
            false => Err(OperationError::NotFound(format!("open link code {id}"))),
        }
    }
}
