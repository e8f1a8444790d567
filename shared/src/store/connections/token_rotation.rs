//! Token rotation of bot tokens: refresh before expiry by one worker at a time.
//!
//! A lease on the row of `token_rotations` separates workers. The update of tokens compares
//! `generation`, in one statement with the connection's token, so that no older token overwrites a
//! newer one. A lease does not change the connection's row, so that workers keep their cached
//! connection.

use crate::store::{Store, StoreError, column, inconsistent};
use crate::{
    secrets::{Place, Sealed, Secret},
    types::ConnectionId,
};
use sqlx::Row;
use std::time::Duration;

const TABLE: &str = "token_rotations";
const CLIENT_SECRET: &str = "token_rotations.client_secret";
const REFRESH_TOKEN: &str = "token_rotations.refresh_token";
const BOT_TOKEN: &str = "connections.bot_token";
/// Share of a token's lifetime after which it is refreshed.
const REFRESH_AT: f64 = 0.8;

/// Credentials for the rotation of a token.
#[derive(Debug)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct NewRotation {
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
pub struct DueRotation {
    pub connection: ConnectionId,
    pub client_id: String,
    pub client_secret: Secret,
    pub refresh_token: Secret,
    pub generation: i64,
    pub failures: i32,
}

impl Store {
    /// Starts or restarts the rotation of a connection's token.
    pub async fn put_rotation(&self, new: &NewRotation) -> Result<(), StoreError> {
        let owner = new.connection.to_string();
        let seal = |column, secret: &Secret| {
            self.rings.tokens.seal_secret(Place { owner: &owner, column }, secret)
        };
        sqlx::query(
            "-- tokens.put
             insert into token_rotations as t (connection_id, client_id, client_secret,
                                               refresh_token, refresh_at, expires_at)
             values ($1, $2, $3, $4, now() + make_interval(secs => $5 * $6),
                     now() + make_interval(secs => $5))
             on conflict (connection_id) do update
                set client_id = excluded.client_id, client_secret = excluded.client_secret,
                    refresh_token = excluded.refresh_token, refresh_at = excluded.refresh_at,
                    expires_at = excluded.expires_at, generation = t.generation + 1, failures = 0,
                    last_error = ''",
        )
        .bind(&owner)
        .bind(&new.client_id)
        .bind(seal(CLIENT_SECRET, &new.client_secret)?.as_str())
        .bind(seal(REFRESH_TOKEN, &new.refresh_token)?.as_str())
        .bind(new.expires_in.as_secs_f64())
        .bind(REFRESH_AT)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Makes the refresh of an expired token due, unless it was refreshed since this version.
    /// Returns whether the token rotates.
    pub async fn refresh_now(
        &self,
        connection: ConnectionId,
        version: i64,
    ) -> Result<bool, StoreError> {
        let rotates = sqlx::query_scalar(
            "-- tokens.refresh_now
             with due as (
                 update token_rotations t set refresh_at = least(t.refresh_at, now())
                   from connections c where c.id = t.connection_id and c.id = $1 and c.version = $2)
             select exists (select from token_rotations where connection_id = $1)",
        )
        .bind(connection.to_string())
        .bind(version)
        .fetch_one(&self.pool)
        .await?;
        Ok(rotates)
    }

    /// Leases a due token refresh that no other worker has.
    pub async fn lease_rotation(&self, lease: Duration) -> Result<Option<DueRotation>, StoreError> {
        let row = sqlx::query(
            "-- tokens.lease
             update token_rotations set leased_until = now() + make_interval(secs => $1)
              where connection_id = (
                 select t.connection_id from token_rotations t
                   join connections c on c.id = t.connection_id
                  where t.refresh_at <= now() and t.leased_until <= now()
                    and c.status in ('active', 'error')
                  order by t.refresh_at limit 1 for update of t skip locked)
             returning connection_id, client_id, client_secret, refresh_token, generation,
                       failures",
        )
        .bind(lease.as_secs_f64())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let owner: String = row.try_get("connection_id")?;
        let open = |place: &'static str, name: &'static str| -> Result<Secret, StoreError> {
            let sealed = Sealed::stored(row.try_get(name)?);
            let place = Place { owner: &owner, column: place };
            let opened = self.rings.tokens.open_secret(place, &sealed);
            opened.map_err(|error| inconsistent(TABLE, name, &owner, error))
        };
        Ok(Some(DueRotation {
            connection: column(&row, TABLE, &owner, "connection_id")?,
            client_id: row.try_get("client_id")?,
            client_secret: open(CLIENT_SECRET, "client_secret")?,
            refresh_token: open(REFRESH_TOKEN, "refresh_token")?,
            generation: row.try_get("generation")?,
            failures: row.try_get("failures")?,
        }))
    }

    /// Writes refreshed tokens, unless another worker did. Returns whether they were written.
    pub async fn rotated(
        &self,
        due: &DueRotation,
        bot_token: &Secret,
        refresh_token: &Secret,
        expires_in: Duration,
    ) -> Result<bool, StoreError> {
        let owner = due.connection.to_string();
        let seal = |column, secret: &Secret| {
            self.rings.tokens.seal_secret(Place { owner: &owner, column }, secret)
        };
        let written = sqlx::query(
            "-- tokens.rotated
             with rotated as (
                 update token_rotations
                    set refresh_token = $3, generation = generation + 1, leased_until = '-infinity',
                        failures = 0, last_error = '',
                        refresh_at = now() + make_interval(secs => $5 * $6),
                        expires_at = now() + make_interval(secs => $5)
                  where connection_id = $1 and generation = $2 returning connection_id)
             update connections set bot_token = $4 where id in (select connection_id from rotated)",
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
    pub async fn rotation_failed(
        &self,
        due: &DueRotation,
        after: Duration,
        error: &str,
    ) -> Result<bool, StoreError> {
        let noted = sqlx::query(
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
        Ok(noted.rows_affected() > 0)
    }
}
