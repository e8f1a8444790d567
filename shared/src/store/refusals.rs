//! What Slack's refusals do to a connection.
//!
//! Guarded by the version under which the token was read: word of an old token never harms a new installation.

use super::{Store, StoreError};
use crate::types::{ConnectionId, Status};

impl Store {
    /// Slack does not know us any more, or not well: the connection is revoked or in error. `version` is the one whose
    /// token was refused; none, when it is not about a token that may have changed since. `why` is for people. True if it
    /// changed.
    pub async fn connection_refused(
        &self,
        connection: ConnectionId,
        version: Option<i64>,
        status: Status,
        why: &str,
    ) -> Result<bool, StoreError> {
        let changed = sqlx::query(
            "-- refusals.refused
             update connections set status = $3, status_reason = $4
              where id = $1 and ($2::bigint is null or version = $2) and status in ('active', 'error') and status <> $3",
        )
        .bind(connection.to_string())
        .bind(version)
        .bind(status.as_str())
        .bind(why)
        .execute(&self.pool)
        .await?;
        Ok(changed.rows_affected() > 0)
    }

    /// Slack takes what we say again: the connection is not in error any more.
    pub async fn connection_works(
        &self,
        connection: ConnectionId,
        version: i64,
    ) -> Result<bool, StoreError> {
        let changed = sqlx::query(
            "-- refusals.works
             update connections set status = 'active', status_reason = '' where id = $1 and version = $2 and status = 'error'",
        )
        .bind(connection.to_string())
        .bind(version)
        .execute(&self.pool)
        .await?;
        Ok(changed.rows_affected() > 0)
    }
}
