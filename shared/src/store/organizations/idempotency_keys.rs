//! Idempotency keys of the control API: a repeated write gets the response of the first one.
//!
//! A request claims its key before it acts and records its response afterwards. A process that dies
//! between the two leaves a claim, which another request may take over after a minute: the write
//! then happens again. Responses are sealed, because they may contain a new link code.

use crate::secrets::{SealContext, SealedValue};
use crate::store::{Store, StoreError, inconsistent};
use sqlx::Row;

const TABLE: &str = "idempotency_keys";
const RESPONSE_COLUMN: &str = "idempotency_keys.response";

/// Claim of a request.
#[derive(Debug, Clone, Copy)]
pub struct IdempotencyClaim<'a> {
    /// Id of the caller's API key.
    pub api_key: &'a str,
    /// Key that the caller chose.
    pub key: &'a str,
    /// Hash of method, path and body.
    pub request_hash: &'a [u8],
}

/// Result of a claim.
#[derive(Debug, PartialEq, Eq)]
pub enum ClaimResult {
    /// The caller executes the request and records its response.
    Claimed,
    /// The response of the first request.
    Recorded {
        /// HTTP status.
        status: u16,
        /// Body.
        body: Vec<u8>,
    },
    /// The first request has not ended.
    InProgress,
    /// The key was used for another request.
    OtherRequest,
}

impl Store {
    /// Claims an idempotency key.
    pub async fn claim_idempotency_key(
        &self,
        claim: IdempotencyClaim<'_>,
    ) -> Result<ClaimResult, StoreError> {
        let row = sqlx::query(
            "-- idempotency_keys.claim
             with claimed as (
                 insert into idempotency_keys as k (api_key_id, key, request_hash)
                 values ($1, $2, $3)
                 on conflict (api_key_id, key) do update set at = now()
                  where k.status is null and k.request_hash = excluded.request_hash
                    and k.at < now() - interval '1 minute'
                 returning 1)
             select exists (select from claimed) as claimed, k.request_hash = $3 as same, k.status,
                    k.response
               from (values (1)) one
               left join idempotency_keys k on k.api_key_id = $1 and k.key = $2",
        )
        .bind(claim.api_key)
        .bind(claim.key)
        .bind(claim.request_hash)
        .fetch_one(&self.pool)
        .await?;
        if row.try_get("claimed")? {
            return Ok(ClaimResult::Claimed);
        }
        if row.try_get::<Option<bool>, _>("same")? == Some(false) {
            return Ok(ClaimResult::OtherRequest);
        }
        let status: Option<i16> = row.try_get("status")?;
        let response: Option<String> = row.try_get("response")?;
        let Some((status, response)) = status.zip(response) else {
            return Ok(ClaimResult::InProgress);
        };
        let owner = owner(&claim);
        let context = SealContext { owner: &owner, column: RESPONSE_COLUMN };
        let opened = self.rings.tokens.open(context, &SealedValue::from_stored(response));
        let body = opened.map_err(|why| inconsistent(TABLE, "response", &owner, why))?;
        Ok(ClaimResult::Recorded { status: status.unsigned_abs(), body: body.to_vec() })
    }

    /// Records the response of a claimed request.
    pub async fn record_idempotent_response(
        &self,
        claim: IdempotencyClaim<'_>,
        status: u16,
        body: &[u8],
    ) -> Result<(), StoreError> {
        let owner = owner(&claim);
        let context = SealContext { owner: &owner, column: RESPONSE_COLUMN };
        let sealed = self.rings.tokens.seal(context, body)?;
        sqlx::query(
            "-- idempotency_keys.record
             update idempotency_keys set status = $3, response = $4
              where api_key_id = $1 and key = $2 and status is null",
        )
        .bind(claim.api_key)
        .bind(claim.key)
        .bind(i16::try_from(status).unwrap_or(i16::MAX))
        .bind(sealed.as_str())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Releases a claim whose request failed and may be repeated.
    pub async fn release_idempotency_key(
        &self,
        claim: IdempotencyClaim<'_>,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "-- idempotency_keys.release
             delete from idempotency_keys where api_key_id = $1 and key = $2 and status is null",
        )
        .bind(claim.api_key)
        .bind(claim.key)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

/// Returns the key that responses are bound to.
fn owner(claim: &IdempotencyClaim<'_>) -> String {
    format!("{}/{}", claim.api_key, claim.key)
}
