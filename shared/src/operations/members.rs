//! Operations on members of organizations.

use super::{OperationError, Operations, Result};
use crate::{
    domain::{AgentId, OrgId},
    store::{DeclaredMember, PlanAction, SavedMember},
};

/// Maximum identities of a member.
const MAX_IDENTITIES: usize = 100;

impl Operations {
    /// Creates a member or changes the identities in Slack. Returns the action, `None` without a
    /// difference.
    pub async fn save_member(&self, member: &DeclaredMember) -> Result<Option<PlanAction>> {
        self.require_org(&member.org, || format!("organization {}", member.org))?;
        if member.identities.len() > MAX_IDENTITIES {
            let why = format!("a member may have {MAX_IDENTITIES} identities at most");
            return Err(OperationError::Invalid(why));
        }
        match self.store.save_member(&self.actor, member).await? {
            SavedMember::Saved(action) => Ok(action),
            SavedMember::OtherUser => Err(OperationError::Conflict(format!(
                "user {} must have the same identities in all organizations, and no identity \
                 of another user",
                member.user
            ))),
        }
    }

    /// Deletes a member.
    pub async fn delete_member(&self, org: &OrgId, user: &AgentId) -> Result<()> {
        self.require_org(org, || format!("member {org}/{user}"))?;
        Ok(self.store.delete_member(&self.actor, org, user).await?)
    }
}
