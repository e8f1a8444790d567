//! Key rotation: re-encrypts all sealed columns with the newest key of their keyring, without
//! downtime.
//!
//! `tidegate keys rewrap` calls it in steps. A step reads rows that another key sealed, and
//! replaces each value only if it did not change meanwhile. A value that does not open is reported
//! and stays. Text columns hold `<key id>:<base64>`. Bytes begin with the length of the key id and
//! the id. Only this prefix is compared, so that no payload is read only to find its key.

use super::sealed_columns::SealedColumn;
use crate::store::{AuditAction, AuditOrg, NewAuditEntry, Store, StoreError, add_audit_entries};
use crate::{
    domain::Actor,
    secrets::{KeyRing, SealContext, SealedValue},
};
use sqlx::Row;

/// Maximum rows per step, for secrets and requests.
const STEP_ROWS: i64 = 200;
/// Maximum rows per step, for payloads of up to 1 MiB.
const STEP_PAYLOADS: i64 = 20;

/// Result of a step.
#[derive(Debug, Default)]
pub struct RewrapStats {
    /// Start of the next step. `None` after the last.
    pub next: Option<String>,
    /// Number of re-encrypted values.
    pub written: u64,
    /// Values that did not open, by column and row.
    pub unopened: Vec<String>,
}

impl Store {
    /// Adds the entry of a key rotation to the audit log. The steps follow: they change no value,
    /// only its encryption.
    pub async fn begin_rewrap(&self, by: &Actor) -> Result<(), StoreError> {
        let newest = |ring: &KeyRing| ring.newest_key_id().to_owned();
        let entry = NewAuditEntry::new(AuditAction::KeyringRewrap, "*", AuditOrg::None).after(
            serde_json::json!({
                "signing_key": newest(&self.rings.signing), "token_key": newest(&self.rings.tokens),
            }),
        );
        let mut tx = self.pool.begin().await?;
        add_audit_entries(&mut tx, by, &[entry]).await?;
        Ok(tx.commit().await?)
    }

    /// Re-encrypts one step of a column's values, after the row key `after`, which is empty for the
    /// first step.
    pub async fn rewrap(
        &self,
        column: &SealedColumn,
        after: &str,
    ) -> Result<RewrapStats, StoreError> {
        let ring = self.ring_of(column);
        let limit = if column.bytes { STEP_PAYLOADS } else { STEP_ROWS };
        let rows = sqlx::query(column.list)
            .bind(ring.newest_key_id())
            .bind(after)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        let mut done = RewrapStats::default();
        for row in &rows {
            let (key, owner): (String, String) = (row.try_get("key")?, row.try_get("owner")?);
            let context = SealContext { owner: &owner, column: column.sealed_for };
            let write = sqlx::query(column.write).bind(&key);
            let write = if column.bytes {
                let old: Vec<u8> = row.try_get("sealed")?;
                match ring.open_bytes(context, &old) {
                    Ok(clear) => Ok(write.bind(old).bind(ring.seal_bytes(context, &clear)?)),
                    Err(error) => Err(error),
                }
            } else {
                let old = SealedValue::from_stored(row.try_get("sealed")?);
                match ring.open(context, &old) {
                    Ok(clear) => {
                        let new = ring.seal(context, &clear)?;
                        Ok(write.bind(old.as_str().to_owned()).bind(new.as_str().to_owned()))
                    }
                    Err(error) => Err(error),
                }
            };
            match write {
                Ok(write) => done.written += write.execute(&self.pool).await?.rows_affected(),
                Err(error) => done.unopened.push(format!("{} of row {key}: {error}", column.name)),
            }
            done.next = Some(key);
        }
        if (rows.len() as i64) < limit {
            done.next = None;
        }
        Ok(done)
    }

    /// Returns the key ids of a column's values, and the number of values of each.
    pub async fn count_values_by_key(
        &self,
        column: &SealedColumn,
    ) -> Result<Vec<(String, i64)>, StoreError> {
        let rows = sqlx::query(column.count).fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((row.try_get("key")?, row.try_get("count")?))).collect()
    }

    /// Returns whether a key is the newest of the column's keyring.
    pub fn is_newest(&self, column: &SealedColumn, key: &str) -> bool {
        self.ring_of(column).newest_key_id() == key
    }

    /// Returns whether the column's keyring has a key.
    pub fn has_key(&self, column: &SealedColumn, key: &str) -> bool {
        self.ring_of(column).has_key(key)
    }

    fn ring_of(&self, column: &SealedColumn) -> &KeyRing {
        if column.signing { &self.rings.signing } else { &self.rings.tokens }
    }
}
