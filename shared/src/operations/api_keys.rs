//! Operations on API keys.

use super::{OperationError, Operations, Result};
use crate::{domain::ApiKey, store::NewApiKey};
use std::time::Duration;

/// Maximum lifetime of an API key.
pub const MAX_API_KEY_TTL: Duration = Duration::from_secs(400 * 24 * 3600);

impl Operations {
    /// Creates an API key. Only this call returns the key.
    pub async fn create_api_key(&self, new: &NewApiKey) -> Result<ApiKey> {
        self.require_all_orgs()?;
        if new.ttl > MAX_API_KEY_TTL || new.ttl.is_zero() {
            return Err(OperationError::Invalid("an API key is valid for 400d at most".into()));
        }
        Ok(self.store.create_api_key(&self.actor, new).await?)
    }

    /// Revokes an API key, effective for the next request.
    pub async fn revoke_api_key(&self, id: &str) -> Result<()> {
        self.require_all_orgs()?;
        match self.store.revoke_api_key(&self.actor, id).await? {
            true => Ok(()),
            false => Err(OperationError::NotFound(format!("valid API key {id}"))),
        }
    }
}
