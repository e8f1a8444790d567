//! API keys: creation, revocation, and authentication of callers.
//!
//! The control API looks a key up for each request and never from a cache, so a revoked key is
//! rejected at once.

use crate::domain::{Actor, ApiKey, ApiKeyHash, ApiKeyRole, OrgId};
use crate::store::{
    AuditAction, AuditOrg, NewAuditEntry, Store, StoreError, add_audit_entries, column,
    maintenance::json, nullable,
};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use std::time::Duration;

const TABLE: &str = "api_keys";

/// API key to create.
#[derive(Debug)]
pub struct NewApiKey {
    /// Name for people.
    pub name: String,
    /// Role.
    pub role: ApiKeyRole,
    /// Organization that the key is limited to. `None`: all organizations.
    pub org: Option<OrgId>,
    /// Lifetime.
    pub ttl: Duration,
}

/// Caller of the control API: a valid key without its secret.
#[derive(Debug, Clone)]
pub struct ApiCaller {
    /// Id of the key.
    pub key: String,
    /// Role.
    pub role: ApiKeyRole,
    /// Organization that the key is limited to. `None`: all organizations.
    pub org: Option<OrgId>,
}

/// API key without its secret, for operators.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct ApiKeyRecord {
    pub id: String,
    pub name: String,
    pub role: String,
    pub organization: Option<String>,
    /// `valid`, `revoked` or `expired`.
    pub state: String,
    pub created_by: String,
    pub created_at: String,
    pub expires_at: String,
    /// Time of the last use, at most a minute too early.
    pub last_used_at: Option<String>,
}

impl Store {
    /// Creates an API key. Only this call returns the key. [`StoreError::Missing`] for an unknown
    /// organization.
    pub async fn create_api_key(&self, by: &Actor, new: &NewApiKey) -> Result<ApiKey, StoreError> {
        let key = ApiKey::random()?;
        let id = key.hash().id();
        let mut tx = self.pool.begin().await?;
        let created = sqlx::query(
            "-- api_keys.create
             insert into api_keys (id, key_hash, name, role, org_id, created_by, expires_at)
             select $1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7)
              where $5::text is null or exists (select from organizations where id = $5)
             returning expires_at::text",
        )
        .bind(&id)
        .bind(key.hash().as_bytes())
        .bind(&new.name)
        .bind(new.role.as_str())
        .bind(new.org.as_ref().map(OrgId::as_str))
        .bind(by.to_string())
        .bind(new.ttl.as_secs_f64())
        .fetch_optional(&mut *tx)
        .await?;
        let missing = || {
            let org = new.org.as_ref().map(OrgId::to_string).unwrap_or_default();
            StoreError::Missing(format!("organization {org}"))
        };
        let expires_at: String = created.ok_or_else(missing)?.try_get("expires_at")?;
        let org = new.org.clone().map_or(AuditOrg::None, AuditOrg::Org);
        let entry =
            NewAuditEntry::new(AuditAction::ApiKeyCreate, id, org).after(serde_json::json!({
                "name": new.name, "role": new.role.as_str(), "expires_at": expires_at,
            }));
        add_audit_entries(&mut tx, by, &[entry]).await?;
        tx.commit().await?;
        // Old keys are deleted when the next is created.
        sqlx::query(
            "-- api_keys.sweep
             delete from api_keys where id in (
                 select id from api_keys
                  where least(expires_at, revoked_at) < now() - interval '400 days' limit 1000)",
        )
        .execute(&self.pool)
        .await?;
        Ok(key)
    }

    /// Returns the newest API keys, at most `limit`.
    pub async fn api_keys(
        &self,
        org: Option<&OrgId>,
        limit: i64,
    ) -> Result<Vec<ApiKeyRecord>, StoreError> {
        let rows = sqlx::query(
            "-- api_keys.list
             select to_jsonb(t) as row from (
                 select id, name, role, org_id as organization, created_by, created_at, expires_at,
                        last_used_at,
                        case when revoked_at is not null then 'revoked'
                             when expires_at <= now() then 'expired' else 'valid' end as state
                   from api_keys where $1::text is null or org_id = $1
                  order by created_at desc, id limit $2) t",
        )
        .bind(org.map(OrgId::as_str))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(json).collect()
    }

    /// Revokes an API key. Returns false if it does not exist or is no longer valid.
    pub async fn revoke_api_key(&self, by: &Actor, id: &str) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let revoked = sqlx::query(
            "-- api_keys.revoke
             update api_keys set revoked_at = now()
              where id = $1 and revoked_at is null and expires_at > now()
             returning org_id",
        )
        .bind(id)
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = revoked else { return Ok(false) };
        let org = nullable(&row, TABLE, id, "org_id")?.map_or(AuditOrg::None, AuditOrg::Org);
        let entry = NewAuditEntry::new(AuditAction::ApiKeyRevoke, id, org);
        add_audit_entries(&mut tx, by, &[entry]).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Returns whether a key is neither revoked nor expired.
    pub async fn is_api_key_valid(&self, id: &str) -> Result<bool, StoreError> {
        let query = sqlx::query_scalar(
            "-- api_keys.is_valid
             select exists (select from api_keys
                             where id = $1 and revoked_at is null and expires_at > now())",
        );
        Ok(query.bind(id).fetch_one(&self.pool).await?)
    }

    /// Returns the caller with a key, and records the use at most once a minute. `None` for an
    /// unknown, revoked or expired key.
    pub async fn authenticate(&self, key: &ApiKeyHash) -> Result<Option<ApiCaller>, StoreError> {
        let row = sqlx::query(
            "-- api_keys.authenticate
             select id, role, org_id,
                    coalesce(last_used_at < now() - interval '1 minute', true) as is_due
               from api_keys
              where key_hash = $1 and revoked_at is null and expires_at > now()",
        )
        .bind(key.as_bytes())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let id: String = row.try_get("id")?;
        if row.try_get("is_due")? {
            sqlx::query(
                "-- api_keys.record_use
                 update api_keys set last_used_at = now()
                  where id = $1 and coalesce(last_used_at < now() - interval '1 minute', true)",
            )
            .bind(&id)
            .execute(&self.pool)
            .await?;
        }
        Ok(Some(ApiCaller {
            role: column(&row, TABLE, &id, "role")?,
            org: nullable(&row, TABLE, &id, "org_id")?,
            key: id,
        }))
    }
}
