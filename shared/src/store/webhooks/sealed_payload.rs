//! The bytes of a webhook at rest: headers and body as they were in the stream, sealed under the token keyring, since
//! bodies hold people's text and a response_url is a secret.

use crate::store::{StoreError, inconsistent};
use crate::secrets::{KeyRing, Place};
use serde::{Deserialize, Serialize};

/// The column that payloads are sealed for, in whichever table they are: a delivery that is given up keeps its bytes.
pub const COLUMN: &str = "webhook.payload";

/// The bytes of a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedPayload {
    /// Its headers, as they were in the stream.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    headers: Vec<(String, String)>,
}

impl SealedPayload {
    /// Seals headers and body for a row. `row` is the dedup key, which names the connection, or a place in the stream.
    pub fn seal(
        ring: &KeyRing,
        row: &str,
        headers: Vec<(String, String)>,
        body: &[u8],
    ) -> Result<Vec<u8>, StoreError> {
        let head = serde_json::to_vec(&Head { headers })
            .map_err(|error| inconsistent("deliveries", "payload", row, error))?;
        let clear = [&(head.len() as u32).to_be_bytes(), &head[..], body].concat();
        Ok(ring.seal_bytes(Place { owner: row, column: COLUMN }, &clear)?)
    }

    /// Opens what [`SealedPayload::seal`] made. The error holds nothing of it.
    pub fn open(ring: &KeyRing, row: &str, sealed: &[u8]) -> Result<Self, String> {
        let place = Place { owner: row, column: COLUMN };
        let clear = ring.open_bytes(place, sealed).map_err(|error| error.to_string())?;
        let damaged = || "the payload is damaged".to_owned();
        let (length, rest) = clear.split_first_chunk::<4>().ok_or_else(damaged)?;
        let length = u32::from_be_bytes(*length) as usize;
        let (head, body) = rest.split_at_checked(length).ok_or_else(damaged)?;
        let Head { headers } = serde_json::from_slice(head).map_err(|error| error.to_string())?;
        Ok(Self { headers, body: body.to_vec() })
    }
}
