//! Limits on the objects that one organization may create. Agents and connections cost memory and
//! rows, and open links and codes are searched. `tidegate apply` has no limit.

use crate::domain::OrgId;
use crate::store::{Store, StoreError};
use sqlx::PgExecutor;

/// Kind of object with a limit per organization.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitedKind {
    /// Agents. Each has up to 1,001 rows of slots.
    Agent,
    /// Connections. Each ingest has all of them in memory.
    Connection,
    /// Install links that can be used.
    FoundInstallLink,
    /// Link codes that can be used.
    OpenLinkCode,
}

impl LimitedKind {
    /// Returns the maximum number.
    pub fn limit(self) -> i64 {
        match self {
            Self::Agent | Self::OpenLinkCode => 10_000,
            Self::Connection | Self::FoundInstallLink => 100_000,
        }
    }

    /// Returns the name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Agent => "agents",
            Self::Connection => "connections",
            Self::FoundInstallLink => "open install links",
            Self::OpenLinkCode => "open link codes",
        }
    }
}

impl Store {
    /// Returns whether an organization has fewer objects of a kind than the limit. Concurrent
    /// creations may exceed the limit by their number.
    pub async fn has_capacity(&self, org: &OrgId, kind: LimitedKind) -> Result<bool, StoreError> {
        let limit = kind.limit();
        Ok(count_limited(&self.pool, org, kind, limit).await? < limit)
    }
}

/// Counts the objects of a kind that an organization has, up to `most`.
pub(in crate::store) async fn count_limited(
    executor: impl PgExecutor<'_>,
    org: &OrgId,
    kind: LimitedKind,
    most: i64,
) -> Result<i64, StoreError> {
    let sql = match kind {
        LimitedKind::Agent => {
            "-- limits.agents
             select count(*) from (select from agents where org_id = $1 limit $2) t"
        }
        LimitedKind::Connection => {
            "-- limits.connections
             select count(*) from (select from connections where org_id = $1 limit $2) t"
        }
        LimitedKind::FoundInstallLink => {
            "-- limits.install_links
             select count(*) from (
                 select from install_links where org_id = $1 and used_at is null
                    and revoked_at is null and expires_at > now() limit $2) t"
        }
        LimitedKind::OpenLinkCode => {
            "-- limits.link_codes
             select count(*) from (
                 select from link_codes where org_id = $1 and consumed_at is null
                    and expires_at > now() limit $2) t"
        }
    };
    let query = sqlx::query_scalar(sql).bind(org.as_str()).bind(most);
    Ok(query.fetch_one(executor).await?)
}
