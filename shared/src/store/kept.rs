//! Webhooks whose bytes are kept in Postgres: the dead, and those that wait so long that the stream may forget them.
//!
//! In: headers and body as they lie in the stream. Out: one sealed text, under the tokens ring: bodies hold users' words, and
//! a `response_url` is a secret.

use super::{Store, StoreError, column, inconsistent};
use crate::{
    codec::envelope::DedupeKey,
    secrets::{KeyRing, Place, Sealed},
    types::ConnectionId,
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use sqlx::Row;

/// The column that a parked webhook's bytes are sealed for; the owner is its connection's id.
pub const PARKED_COLUMN: &str = "lane_backlog.sealed";

/// A webhook's bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its headers, as they lie in the stream.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Resting {
    headers: Vec<(String, String)>,
    body: String,
}

impl Kept {
    pub(super) fn seal(&self, ring: &KeyRing, place: Place<'_>) -> Result<Sealed, StoreError> {
        let resting = Resting { headers: self.headers.clone(), body: BASE64.encode(&self.body) };
        let clear = serde_json::to_vec(&resting)
            .map_err(|error| inconsistent(place.column, "sealed", place.owner, error))?;
        Ok(ring.seal(place, &clear)?)
    }

    /// The error says what is wrong with it, and holds nothing of it.
    pub(super) fn open(ring: &KeyRing, place: Place<'_>, sealed: &Sealed) -> Result<Self, String> {
        let clear = ring.open(place, sealed).map_err(|error| error.to_string())?;
        let Resting { headers, body } =
            serde_json::from_slice(&clear).map_err(|error| error.to_string())?;
        Ok(Self { headers, body: BASE64.decode(body).map_err(|error| error.to_string())? })
    }
}

/// A parked webhook whose bytes lie in the stream alone.
#[derive(Debug, Clone)]
pub struct WithoutBytes {
    /// Its sequence, in the present generation of its partition.
    pub sequence: u64,
    /// Its connection.
    pub connection: ConnectionId,
    /// Its dedupe key.
    pub dedupe: DedupeKey,
}

impl Store {
    /// Webhooks that are parked for over a day, beyond this sequence, at most `limit`.
    pub async fn parked_without_bytes(
        &self,
        after: u64,
        limit: i64,
    ) -> Result<Vec<WithoutBytes>, StoreError> {
        let rows = sqlx::query(
            "-- kept.without_bytes
             select b.sequence, b.connection_id, b.dedupe_key
               from lane_backlog b join partition_leases p using (partition, generation)
              where b.scope = 'live' and b.sealed is null and b.parked_at < now() - interval '1 day'
                and b.sequence > $1
              order by b.sequence limit $2",
        )
        .bind(after as i64)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let sequence: i64 = row.try_get("sequence")?;
                let key = sequence.to_string();
                Ok(WithoutBytes {
                    sequence: sequence as u64,
                    connection: column(row, "lane_backlog", &key, "connection_id")?,
                    dedupe: DedupeKey::stored(row.try_get("dedupe_key")?),
                })
            })
            .collect()
    }

    /// Keeps a parked webhook's bytes, if it is still parked.
    pub async fn keep_bytes(&self, of: &WithoutBytes, kept: &Kept) -> Result<(), StoreError> {
        let connection = of.connection.to_string();
        let place = Place { owner: &connection, column: PARKED_COLUMN };
        let sealed = kept.seal(&self.rings.tokens, place)?;
        sqlx::query(
            "-- kept.keep
             update lane_backlog set sealed = $4
              where scope = 'live' and sequence = $1 and connection_id = $2 and dedupe_key = $3 and sealed is null",
        )
        .bind(of.sequence as i64)
        .bind(&connection)
        .bind(of.dedupe.as_str())
        .bind(sealed.as_str())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// A parked webhook's bytes, if they were kept.
    pub async fn kept_bytes(
        &self,
        generation: i32,
        sequence: u64,
        connection: ConnectionId,
    ) -> Result<Option<Kept>, StoreError> {
        let owner = connection.to_string();
        let sealed: Option<String> = sqlx::query_scalar(
            "-- kept.bytes
             select sealed from lane_backlog
              where scope = 'live' and generation = $1 and sequence = $2 and connection_id = $3 and sealed is not null",
        )
        .bind(generation)
        .bind(sequence as i64)
        .bind(&owner)
        .fetch_optional(&self.pool)
        .await?;
        let place = Place { owner: &owner, column: PARKED_COLUMN };
        sealed
            .map(|sealed| Kept::open(&self.rings.tokens, place, &Sealed::stored(sealed)))
            .transpose()
            .map_err(|why| inconsistent("lane_backlog", "sealed", &sequence.to_string(), why))
    }
}
