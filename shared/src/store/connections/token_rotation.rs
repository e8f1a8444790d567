//! Rotation of bot tokens: refresh before expiry, by one worker at a time.
//!
//! A lease on the row of `token_rotations` separates workers. The update of tokens compares
//! `generation`, in one statement with the connection's token, so that no older token overwrites a
//! newer one. A lease does not change the connection's row, so that workers keep their cached
//! connection.

use crate::store::{
    AuditAction, AuditOrg, NewAuditEntry, Store, StoreError, add_audit_entries,
    apps::client_secret_columns, column, inconsistent,
};
use crate::{
    domain::{Actor, ConnectionId},
    secrets::{SealContext, SealedValue, Secret},
};
use sqlx::Row;
use std::time::Duration;

const TABLE: &str = "token_rotations";
const CLIENT_SECRET: &str = "token_rotations.client_secret";
pub(in crate::store) const REFRESH_TOKEN: &str = "token_rotations.refresh_token";
const BOT_TOKEN: &str = "connections.bot_token";
/// Share of a token's lifetime after which it is refreshed.
pub(in crate::store) const REFRESH_AT: f64 = 0.8;

/// Credentials for the rotation of a token.
#[derive(Debug)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct NewTokenRotation {
    pub connection: ConnectionId,
    pub client_id: String,
    pub client_secret: Secret,
    pub refresh_token: Secret,
    /// Remaining validity of the connection's token.
    pub expires_in: Duration,
}

/// Due token refresh, leased by the caller.
#[derive(Debug)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct DueTokenRefresh {
    pub connection: ConnectionId,
    pub client_id: String,
    /// Valid client secrets, newest first: the connection's own, or those of its app.
    pub client_secrets: Vec<Secret>,
    pub refresh_token: Secret,
    pub generation: i64,
    pub failures: i32,
}

impl Store {
    /// Starts or restarts the rotation of a connection's token.
    pub async fn enable_token_rotation(
        &self,
        by: &Actor,
        new: &NewTokenRotation,
    ) -> Result<(), StoreError> {
        let owner = new.connection.to_string();
        let seal = |column, secret: &Secret| {
            self.rings.tokens.seal_secret(SealContext { owner: &owner, column }, secret)
        };
        let mut tx = self.pool.begin().await?;
        sqlx::query(
            // An upsert would need the right to read the secrets.
            "-- tokens.put
             with changed as (
                 update token_rotations
                    set client_id = $2, client_secret = $3, refresh_token = $4,
                        refresh_at = now() + make_interval(secs => $5::float8 * $6),
                        expires_at = now() + make_interval(secs => $5),
                        generation = generation + 1, failures = 0, last_error = ''
                  where connection_id = $1 returning 1)
             insert into token_rotations (connection_id, client_id, client_secret, refresh_token,
                                          refresh_at, expires_at)
             select $1, $2, $3, $4, now() + make_interval(secs => $5::float8 * $6),
                    now() + make_interval(secs => $5)
              where not exists (select from changed)",
        )
        .bind(&owner)
        .bind(&new.client_id)
        .bind(seal(CLIENT_SECRET, &new.client_secret)?.as_str())
        .bind(seal(REFRESH_TOKEN, &new.refresh_token)?.as_str())
        .bind(new.expires_in.as_secs_f64())
        .bind(REFRESH_AT)
        .execute(&mut *tx)
        .await?;
        let org = AuditOrg::OfConnection(new.connection);
        let action = AuditAction::ConnectionEnableTokenRotation;
        let entry = NewAuditEntry::new(action, new.connection, org).after(serde_json::json!({
            "client_id": new.client_id, "expires_in_seconds": new.expires_in.as_secs(),
        }));
        add_audit_entries(&mut tx, by, &[entry]).await?;
        Ok(tx.commit().await?)
    }

    /// Makes the refresh of an expired token due, unless it was refreshed since this version.
    /// Returns whether the token rotates.
    pub async fn request_token_refresh(
        &self,
        connection: ConnectionId,
        version: i64,
    ) -> Result<bool, StoreError> {
        let rotates = sqlx::query_scalar(
            "-- tokens.refresh_now
             with t as (
                 select connection_id from token_rotations where connection_id = $1 for update),
             -- Locked after the rotation, as by a refresh. A refresh that this statement waited for
             -- has raised the version.
             c as (
                 select c.id from connections c join t on c.id = t.connection_id
                  where c.version = $2 for share of c),
             due as (
                 update token_rotations t set refresh_at = least(t.refresh_at, now())
                   from c where t.connection_id = c.id)
             select exists (select from token_rotations where connection_id = $1)",
        )
        .bind(connection.to_string())
        .bind(version)
        .fetch_one(&self.pool)
        .await?;
        Ok(rotates)
    }

    /// Leases a due token refresh that no other worker has. With `takes_over` also one whose lease
    /// ended without a result: the worker that had it crashed, or could not record its result.
    pub async fn lease_token_refresh(
        &self,
        lease: Duration,
        takes_over: bool,
    ) -> Result<Option<DueTokenRefresh>, StoreError> {
        let row = sqlx::query(concat!(
            "-- tokens.lease
             with due as (
                 update token_rotations set leased_until = now() + make_interval(secs => $1)
                  where connection_id = (
                     select t.connection_id from token_rotations t
                       join connections c on c.id = t.connection_id
                      where t.refresh_at <= now() and t.leased_until <= case when $2 then now() else '-infinity' end
                        and c.status in ('active', 'error')
                      order by t.refresh_at limit 1 for update of t skip locked)
                 returning connection_id, client_id, client_secret, refresh_token, generation,
                           failures)
             select d.connection_id, d.client_id, d.client_secret, d.refresh_token, d.generation,
                    d.failures, c.app_id, ",
            client_secret_columns!(),
            " from due d join connections c on c.id = d.connection_id
               left join apps a on a.id = c.app_id"
        ))
        .bind(lease.as_secs_f64())
        .bind(takes_over)
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let owner: String = row.try_get("connection_id")?;
        let open = |column, name, sealed| {
            let context = SealContext { owner: &owner, column };
            let opened = self.rings.tokens.open_secret(context, &SealedValue::from_stored(sealed));
            opened.map_err(|error| inconsistent(TABLE, name, &owner, error))
        };
        let own: Option<String> = row.try_get("client_id")?;
        let (client_id, client_secrets) = match own {
            Some(own) => {
                let sealed = row.try_get("client_secret")?;
                (own, vec![open(CLIENT_SECRET, "client_secret", sealed)?])
            }
            None => self.client_credentials(&row, &column(&row, TABLE, &owner, "app_id")?)?,
        };
        Ok(Some(DueTokenRefresh {
            connection: column(&row, TABLE, &owner, "connection_id")?,
            client_id,
            client_secrets,
            refresh_token: open(REFRESH_TOKEN, "refresh_token", row.try_get("refresh_token")?)?,
            generation: row.try_get("generation")?,
            failures: row.try_get("failures")?,
        }))
    }

    /// Writes refreshed tokens, unless another worker did. Returns whether they were written.
    /// Clears the error status of the connection, which another use of the old refresh token may
    /// have set.
    pub async fn record_token_refresh(
        &self,
        due: &DueTokenRefresh,
        bot_token: &Secret,
        refresh_token: &Secret,
        expires_in: Duration,
    ) -> Result<bool, StoreError> {
        let owner = due.connection.to_string();
        let seal = |column, secret: &Secret| {
            self.rings.tokens.seal_secret(SealContext { owner: &owner, column }, secret)
        };
        let written = sqlx::query(
            "-- tokens.rotated
             with rotated as (
                 update token_rotations
                    set refresh_token = $3, generation = generation + 1, leased_until = '-infinity',
                        failures = 0, last_error = '',
                        refresh_at = now() + make_interval(secs => $5::float8 * $6),
                        expires_at = now() + make_interval(secs => $5)
                  where connection_id = $1 and generation = $2 returning connection_id)
             update connections
                set bot_token = $4,
                    status = case when status = 'error' then 'active' else status end,
                    status_reason = case when status = 'error' then '' else status_reason end
              where id in (select connection_id from rotated) and status <> 'revoked'",
        )
        .bind(&owner)
        .bind(due.generation)
        .bind(seal(REFRESH_TOKEN, refresh_token)?.as_str())
        .bind(seal(BOT_TOKEN, bot_token)?.as_str())
        .bind(expires_in.as_secs_f64())
        .bind(REFRESH_AT)
        .execute(&self.pool)
        .await?;
        Ok(written.rows_affected() > 0)
    }

    /// Records a failed refresh and schedules the next attempt. Returns false if another worker
    /// refreshed the token.
    pub async fn record_token_refresh_failure(
        &self,
        due: &DueTokenRefresh,
        after: Duration,
        error: &str,
    ) -> Result<bool, StoreError> {
        let recorded = sqlx::query(
            "-- tokens.failed
             update token_rotations
                set leased_until = '-infinity', refresh_at = now() + make_interval(secs => $3),
                    failures = failures + 1, last_error = $4
              where connection_id = $1 and generation = $2",
        )
        .bind(due.connection.to_string())
        .bind(due.generation)
        .bind(after.as_secs_f64())
        .bind(error)
        .execute(&self.pool)
        .await?;
        Ok(recorded.rows_affected() > 0)
    }
}
