//! Numbers of rows for the lists of the console. Each statement reads a bounded number of rows, so
//! that a count of millions is as fast as a small one.

use crate::domain::{ConnectionId, OrgId};
use crate::store::{AuditLogFilter, Store, StoreError, UsageFilter};
use sqlx::{Row, postgres::PgRow};
use std::fmt;

/// Number of rows up to a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BoundedCount(i64);

impl BoundedCount {
    /// Largest exact number.
    pub const EXACT_MAX: i64 = 10_000;
    /// Maximum rows that a count reads.
    pub const READ_MAX: i64 = Self::EXACT_MAX + 1;

    /// Returns the count in the column `count` of a row.
    pub(in crate::store) fn of(row: PgRow) -> Result<Self, StoreError> {
        Ok(Self(row.try_get("count")?))
    }

    /// Returns whether there are no rows.
    pub fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl fmt::Display for BoundedCount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            exact @ ..=Self::EXACT_MAX => write!(f, "{exact}"),
            _ => write!(f, "more than {}", Self::EXACT_MAX),
        }
    }
}

impl Store {
    /// Counts connections, of all organizations or one.
    pub async fn count_connections(&self, org: Option<&OrgId>) -> Result<BoundedCount, StoreError> {
        let query = sqlx::query(
            "-- connections.count
             select count(*) as count from (
                 select from connections where $1::text is null or org_id = $1 limit $2) t",
        );
        let query = query.bind(org.map(OrgId::as_str)).bind(BoundedCount::READ_MAX);
        BoundedCount::of(query.fetch_one(&self.pool).await?)
    }

    /// Counts agents, of all organizations or one.
    pub async fn count_agents(&self, org: Option<&OrgId>) -> Result<BoundedCount, StoreError> {
        let query = sqlx::query(
            "-- agents.count
             select count(*) as count from (
                 select from agents where $1::text is null or org_id = $1 limit $2) t",
        );
        let query = query.bind(org.map(OrgId::as_str)).bind(BoundedCount::READ_MAX);
        BoundedCount::of(query.fetch_one(&self.pool).await?)
    }

    /// Counts link codes, of all organizations or one.
    pub async fn count_link_codes(&self, org: Option<&OrgId>) -> Result<BoundedCount, StoreError> {
        let query = sqlx::query(
            "-- link_codes.count
             select count(*) as count from (
                 select from link_codes where $1::text is null or org_id = $1 limit $2) t",
        );
        let query = query.bind(org.map(OrgId::as_str)).bind(BoundedCount::READ_MAX);
        BoundedCount::of(query.fetch_one(&self.pool).await?)
    }

    /// Counts the bindings of a connection.
    pub async fn count_bindings(&self, of: ConnectionId) -> Result<BoundedCount, StoreError> {
        let query = sqlx::query(
            "-- bindings.count
             select count(*) as count from (
                 select from channel_bindings where connection_id = $1 limit $2) t",
        );
        let query = query.bind(of.to_string()).bind(BoundedCount::READ_MAX);
        BoundedCount::of(query.fetch_one(&self.pool).await?)
    }

    /// Counts rows of usage. Ignores the start of the page.
    pub async fn count_usage(&self, filter: &UsageFilter) -> Result<BoundedCount, StoreError> {
        let query = sqlx::query(
            "-- usage.count
             select count(*) as count from (
                 select from connection_usage u left join connections c on c.id = u.connection_id
                  where ($1::text is null or c.org_id = $1)
                    and ($2::text is null or u.connection_id = $2)
                    and ($3::timestamptz is null or u.hour >= $3)
                    and ($4::timestamptz is null or u.hour < $4) limit $5) t",
        )
        .bind(filter.org.as_ref().map(OrgId::as_str))
        .bind(filter.connection.map(|id| id.to_string()))
        .bind(filter.from)
        .bind(filter.to)
        .bind(BoundedCount::READ_MAX);
        BoundedCount::of(query.fetch_one(&self.pool).await?)
    }

    /// Counts entries of the audit log. Ignores the start of the page.
    pub async fn count_audit_log(
        &self,
        filter: &AuditLogFilter,
    ) -> Result<BoundedCount, StoreError> {
        let query = sqlx::query(
            "-- audit_log.count
             select count(*) as count from (
                 select from audit_log
                  where ($1::text is null or actor = $1) and ($2::text is null or action = $2)
                    and ($3::text is null or object_kind = $3)
                    and ($4::text is null or object_id = $4) and ($5::text is null or org_id = $5)
                    and ($6::timestamptz is null or at >= $6)
                    and ($7::timestamptz is null or at < $7)
                  limit $8) t",
        )
        .bind(&filter.actor)
        .bind(&filter.action)
        .bind(&filter.object_kind)
        .bind(&filter.object_id)
        .bind(filter.org.as_ref().map(OrgId::as_str))
        .bind(filter.from)
        .bind(filter.to)
        .bind(BoundedCount::READ_MAX);
        BoundedCount::of(query.fetch_one(&self.pool).await?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn displays_bound() {
        assert_eq!(BoundedCount(10_000).to_string(), "10000");
        assert_eq!(BoundedCount(BoundedCount::READ_MAX).to_string(), "more than 10000");
    }
}
