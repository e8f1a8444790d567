//! Payload of a webhook at rest: headers and body of the stream, sealed with the token keyring,
//! because bodies contain people's text and a `response_url` is a secret.

use crate::secrets::{KeyRing, SealContext};
use crate::store::{StoreError, inconsistent};
use serde::{Deserialize, Serialize};

/// Column that payloads are sealed for, in every table: a dead letter keeps the sealed bytes of its
/// delivery.
pub const COLUMN: &str = "webhook.payload";

/// Payload of a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedPayload {
    /// Headers of the stream.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    headers: Vec<(String, String)>,
}

impl SealedPayload {
    /// Seals headers and body. `row` is the dedup key, which contains the connection, or a position
    /// in the stream.
    pub fn seal(
        ring: &KeyRing,
        row: &str,
        headers: Vec<(String, String)>,
        body: &[u8],
    ) -> Result<Vec<u8>, StoreError> {
        let head = serde_json::to_vec(&Head { headers })
            .map_err(|error| inconsistent("deliveries", "payload", row, error))?;
        let clear = [&(head.len() as u32).to_be_bytes(), &head[..], body].concat();
        Ok(ring.seal_bytes(SealContext { owner: row, column: COLUMN }, &clear)?)
    }

    /// Opens a result of [`SealedPayload::seal`]. The error contains no part of the payload.
    pub fn open(ring: &KeyRing, row: &str, sealed: &[u8]) -> Result<Self, String> {
        let context = SealContext { owner: row, column: COLUMN };
        let clear = ring.open_bytes(context, sealed).map_err(|error| error.to_string())?;
        let damaged = || "the payload is damaged".to_owned();
        let (length, rest) = clear.split_first_chunk::<4>().ok_or_else(damaged)?;
        let length = u32::from_be_bytes(*length) as usize;
        let (head, body) = rest.split_at_checked(length).ok_or_else(damaged)?;
        let Head { headers } = serde_json::from_slice(head).map_err(|error| error.to_string())?;
        Ok(Self { headers, body: body.to_vec() })
    }
}
