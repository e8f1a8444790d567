//! Sessions of the console. Each request queries its session together with the API key that began
//! it, so that a revoked or expired key ends its sessions at once.

use crate::domain::{ApiKeyHash, ConsoleSession, ConsoleSessionHash};
use crate::store::{ApiCaller, Store, StoreError, column, nullable};
use sqlx::{Row, postgres::PgRow};

const TABLE: &str = "console_sessions";
/// Lifetime of a session.
const LIFETIME_HOURS: i32 = 8;
/// Time without a request after which a session ends.
const IDLE_MINUTES: i32 = 60;
/// Maximum expired sessions that a new one deletes.
const SWEEP_ROWS: i64 = 1_000;

impl Store {
    /// Begins a session with an API key. `None` for an unknown, revoked or expired key.
    pub async fn begin_console_session(
        &self,
        key: &ApiKeyHash,
    ) -> Result<Option<ConsoleSession>, StoreError> {
        sqlx::query(
            "-- console_sessions.sweep
             delete from console_sessions where session_hash in (
                 select session_hash from console_sessions where expires_at <= now() limit $1)",
        )
        .bind(SWEEP_ROWS)
        .execute(&self.pool)
        .await?;
        let session = ConsoleSession::random()?;
        let begun = sqlx::query(
            "-- console_sessions.begin
             insert into console_sessions (session_hash, api_key_id, expires_at)
             select $1, id, least(expires_at, now() + make_interval(hours => $3)) from api_keys
              where key_hash = $2 and revoked_at is null and expires_at > now()",
        )
        .bind(session.hash().as_bytes())
        .bind(key.as_bytes())
        .bind(LIFETIME_HOURS)
        .execute(&self.pool)
        .await?;
        Ok((begun.rows_affected() == 1).then_some(session))
    }

    /// Returns the caller of a session, and records the use at most once a minute. `None` for a
    /// session that is unknown or has ended, or whose API key is no longer valid.
    pub async fn console_caller(
        &self,
        session: &ConsoleSessionHash,
    ) -> Result<Option<ApiCaller>, StoreError> {
        let row = sqlx::query(
            "-- console_sessions.find
             select k.id, k.role, k.org_id, s.used_at < now() - interval '1 minute' as is_due
               from console_sessions s join api_keys k on k.id = s.api_key_id
              where s.session_hash = $1 and s.expires_at > now()
                and s.used_at > now() - make_interval(mins => $2)
                and k.revoked_at is null and k.expires_at > now()",
        )
        .bind(session.as_bytes())
        .bind(IDLE_MINUTES)
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        if row.try_get("is_due")? {
            sqlx::query(
                "-- console_sessions.record_use
                 update console_sessions set used_at = now() where session_hash = $1",
            )
            .bind(session.as_bytes())
            .execute(&self.pool)
            .await?;
        }
        caller(&row).map(Some)
    }

    /// Ends a session.
    pub async fn end_console_session(
        &self,
        session: &ConsoleSessionHash,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "-- console_sessions.end\n delete from console_sessions where session_hash = $1",
        )
        .bind(session.as_bytes())
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

fn caller(row: &PgRow) -> Result<ApiCaller, StoreError> {
    let key: String = row.try_get("id")?;
    Ok(ApiCaller {
        role: column(row, TABLE, &key, "role")?,
        org: nullable(row, TABLE, &key, "org_id")?,
        key,
    })
}
