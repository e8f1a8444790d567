//! What Slack's refusals do to a connection.
//!
//! Guarded by the version under which the token was read: word of an old token never harms a new installation. Refusals in a
//! row are counted over all workers in a table of their own: counting does not change the row that workers cache.

use crate::store::{Store, StoreError};
use crate::types::{ConnectionId, Status};

impl Store {
    /// Slack refused the token that this version of a connection has; how often in a row, with less than ten minutes between.
    /// Nothing is counted for a version that is over.
    pub async fn count_refusal(
        &self,
        connection: ConnectionId,
        version: i64,
    ) -> Result<i32, StoreError> {
        let count: Option<i32> = sqlx::query_scalar(
            "-- refusals.count
             insert into token_failures as r (connection_id, installed_at, consecutive_failures)
             select id, installed_at, 1 from connections where id = $1 and version = $2
             on conflict (connection_id) do update
                set consecutive_failures = case when r.installed_at is distinct from excluded.installed_at
                                      or r.at < now() - interval '10 minutes' then 1 else r.consecutive_failures + 1 end,
                    installed_at = excluded.installed_at, at = now()
             returning consecutive_failures as refusals",
        )
        .bind(connection.to_string())
        .bind(version)
        .fetch_optional(&self.pool)
        .await?;
        Ok(count.unwrap_or_default())
    }

    /// Slack does not know us any more, or not well: the connection is revoked or in error. `version` is the one whose
    /// token was refused; none, when it is not about a token that may have changed since. True if it changed.
    pub async fn connection_refused(
        &self,
        connection: ConnectionId,
        version: Option<i64>,
        status: Status,
        reason: &str,
    ) -> Result<bool, StoreError> {
        let changed = sqlx::query(
            "-- refusals.refused
             update connections set status = $3, status_reason = $4
              where id = $1 and ($2::bigint is null or version = $2) and status in ('active', 'error') and status <> $3",
        )
        .bind(connection.to_string())
        .bind(version)
        .bind(status.as_str())
        .bind(reason)
        .execute(&self.pool)
        .await?;
        Ok(changed.rows_affected() > 0)
    }

    /// Slack takes what we say again: nothing is counted any more, and the connection is not in error.
    pub async fn connection_works(
        &self,
        connection: ConnectionId,
        version: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "-- refusals.works
             with forgotten as (delete from token_failures where connection_id = $1)
             update connections set status = 'active', status_reason = ''
              where id = $1 and version = $2 and status = 'error'",
        )
        .bind(connection.to_string())
        .bind(version)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
