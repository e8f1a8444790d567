//! Consecutive failures of a connection's token.
//!
//! Each call is guarded by the version under which the token was read, so that a failure of an old
//! token never affects a new installation. Failures are counted over all workers, in a separate
//! table, because a change of the connection's row would invalidate the workers' caches.

use crate::domain::{ConnectionId, ConnectionStatus};
use crate::store::{Store, StoreError};

impl Store {
    /// Counts a rejection of the token of this version. Returns the number of consecutive
    /// rejections, each within ten minutes of the previous one. Returns 0 for an old version.
    pub async fn count_token_rejection(
        &self,
        connection: ConnectionId,
        version: i64,
    ) -> Result<i32, StoreError> {
        let count: Option<i32> = sqlx::query_scalar(
            "-- token_failures.count
             insert into token_failures as r (connection_id, installed_at, consecutive_failures)
             select id, installed_at, 1 from connections where id = $1 and version = $2
             on conflict (connection_id) do update
                set consecutive_failures =
                    case when r.installed_at is distinct from excluded.installed_at
                                      or r.at < now() - interval '10 minutes' then 1
                                         else r.consecutive_failures + 1 end,
                    installed_at = excluded.installed_at, at = now()
             returning consecutive_failures as refusals",
        )
        .bind(connection.to_string())
        .bind(version)
        .fetch_optional(&self.pool)
        .await?;
        Ok(count.unwrap_or_default())
    }

    /// Sets a connection to revoked or error. `version` is that of the rejected token, or `None` if
    /// the cause is not a token. Returns whether the status changed.
    pub async fn record_connection_failure(
        &self,
        connection: ConnectionId,
        version: Option<i64>,
        status: ConnectionStatus,
        reason: &str,
    ) -> Result<bool, StoreError> {
        let changed = sqlx::query(
            "-- token_failures.record
             update connections set status = $3, status_reason = $4
              where id = $1 and ($2::bigint is null or version = $2)
                and status in ('active', 'error') and status <> $3",
        )
        .bind(connection.to_string())
        .bind(version)
        .bind(status.as_str())
        .bind(reason)
        .execute(&self.pool)
        .await?;
        Ok(changed.rows_affected() > 0)
    }

    /// Clears the failures and the error status after a successful call.
    pub async fn record_connection_success(
        &self,
        connection: ConnectionId,
        version: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "-- token_failures.clear
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
