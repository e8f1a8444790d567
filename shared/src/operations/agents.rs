//! Operations on organizations and agents.

use super::{OperationError, Operations, Result};
use crate::{
    domain::{AgentId, AgentMode, OrgId},
    secrets::Secret,
    store::{LimitedKind, NewAgent, PlanAction},
};
use std::{ops::RangeInclusive, time::Duration};

/// Bounds of an agent's `timeout`.
pub(super) const TIMEOUT_BOUNDS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(600);
/// Bounds of an agent's `retry_for` and `keep_for`. The retention of the stream does not limit
/// them: deliveries contain their bytes.
pub(super) const KEEP_BOUNDS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(14 * 24 * 3600);
/// Bounds of an agent's `max_concurrent`.
pub(super) const MAX_CONCURRENT_BOUNDS: RangeInclusive<u16> = 1..=1000;
/// Bounds of an agent's `max_per_user`.
pub(super) const MAX_PER_USER_BOUNDS: RangeInclusive<u32> = 1..=1_000_000;
/// Maximum length of addresses.
const URL_BYTES_MAX: usize = 2_048;
/// Maximum length of names in characters.
const NAME_CHARS_MAX: usize = 256;

/// Settings of an agent to create or change.
#[derive(Debug)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct AgentSettings {
    pub name: String,
    pub mode: AgentMode,
    pub url: String,
    /// `None`: unchanged. A new agent requires one.
    pub secret: Option<Secret>,
    pub timeout: Duration,
    pub max_concurrent: u16,
    pub max_per_user: u32,
    pub retry_for: Option<Duration>,
    pub keep_for: Duration,
    pub signs_as_slack: bool,
}

impl AgentSettings {
    fn check(&self) -> Result<()> {
        let require = |holds: bool, rule: &str| match holds {
            true => Ok(()),
            false => Err(OperationError::Invalid(rule.to_owned())),
        };
        require_name(&self.name)?;
        check_url(&self.url).map_err(|rule| OperationError::Invalid(rule.into()))?;
        require(TIMEOUT_BOUNDS.contains(&self.timeout), "timeout_ms must be 1000 to 600000")?;
        let is_bounded = MAX_CONCURRENT_BOUNDS.contains(&self.max_concurrent);
        require(is_bounded, "max_concurrent must be 1 to 1000")?;
        let is_bounded = MAX_PER_USER_BOUNDS.contains(&self.max_per_user);
        require(is_bounded, "max_per_user must be 1 to 1000000")?;
        let times = [Some(self.keep_for), self.retry_for];
        let are_bounded = times.iter().flatten().all(|time| KEEP_BOUNDS.contains(time));
        require(are_bounded, "retry_for_ms and keep_for_ms must be 1 s to 14 days")?;
        let is_usable = self.secret.as_ref().is_none_or(|secret| secret.webhook_key().is_some());
        require(is_usable, "secret must be whsec_ and base64 of 24 to 64 bytes, or other text")
    }
}

fn require_name(name: &str) -> Result<()> {
    check_name(name).map_err(|rule| OperationError::Invalid(rule.into()))
}

/// Fails with cause and remedy unless a text may be the name of an organization or agent.
pub(super) fn check_name(name: &str) -> std::result::Result<(), &'static str> {
    match name.chars().count() <= NAME_CHARS_MAX && !name.chars().any(char::is_control) {
        true => Ok(()),
        false => Err("malformed name; write 256 characters at most, without control characters"),
    }
}

/// Fails with cause and remedy unless a text is an address that can be called.
pub(super) fn check_url(url: &str) -> std::result::Result<(), &'static str> {
    let rest = ["https://", "http://"].iter().find_map(|scheme| url.strip_prefix(scheme));
    let host = rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
    if host.is_empty() || !url.bytes().all(|b| b.is_ascii_graphic()) {
        Err("malformed url; write https://host/path")
    } else if host.contains('@') {
        // A password would be stored in plaintext, and calls of such a URL fail.
        Err("user or password in url; remove them, requests are signed with secret")
    } else if url.len() > URL_BYTES_MAX {
        Err("url is too long; write 2048 characters at most")
    } else {
        Ok(())
    }
}

/// Returns the error for an organization with declared apps.
pub(super) fn owns_apps(id: &OrgId, apps: i64) -> OperationError {
    OperationError::Conflict(format!(
        "apps are declared for organization {id}: {apps}; remove them with tidegate apply first"
    ))
}

impl Operations {
    /// Creates an organization or changes its name. Returns the action, `None` without a
    /// difference.
    pub async fn save_organization(&self, id: &OrgId, name: &str) -> Result<Option<PlanAction>> {
        self.require_org(id, || format!("organization {id}"))?;
        require_name(name)?;
        Ok(self.store.save_organization(&self.actor, id, name).await?)
    }

    /// Creates or changes an agent. Returns the action, `None` without a difference.
    pub async fn save_agent(
        &self,
        org: &OrgId,
        id: &AgentId,
        settings: AgentSettings,
    ) -> Result<Option<PlanAction>> {
        self.require_org(org, || format!("organization {org}"))?;
        settings.check()?;
        if self.store.agent(org, id).await?.is_none() {
            self.require_capacity(org, LimitedKind::Agent).await?;
        }
        let AgentSettings { name, mode, url, timeout, max_concurrent, retry_for, keep_for, .. } =
            settings;
        let new = |secret, headers, policies| NewAgent {
            org: org.clone(),
            id: id.clone(),
            name,
            mode,
            url,
            secret,
            timeout,
            max_concurrent,
            max_per_user: settings.max_per_user,
            retry_for,
            keep_for,
            signs_as_slack: settings.signs_as_slack,
            headers,
            policies,
        };
        let saved = self.store.save_agent(&self.actor, (org, id), settings.secret, new).await?;
        saved.map_err(OperationError::Conflict)
    }

    /// Deletes an agent with its bindings and link codes. Its waiting deliveries end.
    pub async fn delete_agent(&self, org: &OrgId, id: &AgentId) -> Result<()> {
        self.require_org(org, || format!("agent {org}/{id}"))?;
        match self.store.delete_agent(&self.actor, org, id).await? {
            0 => Ok(()),
            used => Err(OperationError::Conflict(format!(
                "agent {org}/{id} is the default agent of connections: {used}; change them first"
            ))),
        }
    }

    /// Deletes an organization with its agents, members and API keys.
    pub async fn delete_organization(&self, id: &OrgId) -> Result<()> {
        self.require_org(id, || format!("organization {id}"))?;
        match self.store.delete_organization(&self.actor, id).await? {
            (0, 0) => Ok(()),
            (0, apps) => Err(owns_apps(id, apps)),
            (used, _) => Err(OperationError::Conflict(format!(
                "organization {id} has connections: {used}; delete them first"
            ))),
        }
    }

    /// Pauses or resumes an agent. Returns whether anything changed.
    pub async fn set_agent_paused(
        &self,
        org: &OrgId,
        agent: &AgentId,
        paused: bool,
    ) -> Result<bool> {
        self.require_org(org, || format!("agent {org}/{agent}"))?;
        Ok(if paused {
            self.store.pause_agent(&self.actor, org, agent).await?
        } else {
            self.store.resume_agent(&self.actor, org, agent).await?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

    fn settings(keep_for: Duration, retry_for: Option<Duration>) -> AgentSettings {
        AgentSettings {
            name: String::new(),
            mode: AgentMode::default(),
            url: "https://helper.example/".into(),
            secret: None,
            timeout: NewAgent::TIMEOUT,
            max_concurrent: NewAgent::MAX_CONCURRENT,
            max_per_user: NewAgent::MAX_PER_USER,
            retry_for,
            keep_for,
            signs_as_slack: false,
        }
    }

    /// The bounds are those of the file of `tidegate apply`.
    #[test]
    fn limits_times_as_file_does() {
        let most = *KEEP_BOUNDS.end();
        assert!(settings(most, Some(most)).check().is_ok());
        assert!(settings(MONTH, None).check().is_err());
        assert!(settings(most, Some(MONTH)).check().is_err());
    }
}
