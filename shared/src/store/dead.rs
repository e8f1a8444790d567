//! The dead: webhooks given up on, with why, and with their bytes, until a person decides.

use super::{LIVE, Owner, Store, StoreError, inconsistent};
use crate::secrets::{Place, Sealed};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use sqlx::Row;
use std::borrow::Cow;

const TABLE: &str = "dead";
const COLUMN: &str = "dead.sealed";

/// A webhook about to be given up on.
#[derive(Debug)]
pub struct Dying<'a> {
    /// Its sequence.
    pub sequence: u64,
    /// Its subject, whatever that is.
    pub subject: &'a str,
    /// Its headers, as they lie in the stream.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: &'a [u8],
    /// What it is to be found by; absent when it could not be read.
    pub connection: Option<String>,
    /// Its dedupe key, likewise.
    pub dedupe: Option<String>,
    /// Why, in a word or sentence that is the same for all of its sort.
    pub reason: &'a str,
    /// What the last try said.
    pub last_error: &'a str,
    /// How often it was tried.
    pub attempts: i32,
}

/// A dead webhook, as an operator sees it.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct DeadWebhook {
    pub id: i64,
    pub partition: i16,
    pub sequence: i64,
    pub subject: String,
    pub connection: Option<String>,
    pub reason: String,
    pub last_error: String,
    pub attempts: i32,
    pub headers: Vec<(String, String)>,
    #[serde(skip)]
    pub body: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    headers: Vec<(String, String)>,
    body: String,
}

impl Store {
    /// Gives a webhook up: writes it among the dead, under the owner's epoch. False when somebody else owns the
    /// partition; then nothing changed. Running twice leaves one row.
    pub async fn bury(&self, owner: &Owner, dying: &Dying<'_>) -> Result<bool, StoreError> {
        let subject = storable(dying.subject);
        let place = Place { owner: &subject, column: COLUMN };
        let kept = Kept { headers: dying.headers.clone(), body: BASE64.encode(dying.body) };
        let kept = serde_json::to_vec(&kept)
            .map_err(|e| inconsistent(TABLE, "sealed", dying.subject, e))?;
        let sealed = self.rings.tokens.seal(place, &kept)?;
        let row = sqlx::query(
            "-- dead.bury
             with mine as (
                 select 1 from partition_epochs where partition = $1 and owner = $2 and epoch = $3 for share),
             buried as (
                 insert into dead (scope, generation, partition, sequence, subject, connection_id, dedupe_key,
                                   reason, last_error, attempts, sealed)
                 select $4, $5, $1, $6, $7, $8, $9, $10, $11, $12, $13 from mine on conflict do nothing returning 1),
             -- What is dead is done: a copy of it that comes later is not tried again.
             noted as (
                 insert into seen (scope, dedupe_key, generation, partition, sequence, lane, outcome, worker)
                 select $4, $9, $5, $1, $6, 0, 'dead', $2 from buried where $9::text is not null on conflict do nothing),
             worked_off as (
                 delete from lane_backlog using mine
                  where scope = $4 and generation = $5 and partition = $1 and sequence = $6)
             select exists (select from mine) as mine",
        )
        .bind(owner.partition.number() as i16)
        .bind(&owner.worker)
        .bind(owner.epoch)
        .bind(LIVE)
        .bind(owner.generation)
        .bind(dying.sequence as i64)
        .bind(&*subject)
        .bind(dying.connection.as_deref().map(storable))
        .bind(dying.dedupe.as_deref().map(storable))
        .bind(storable(dying.reason))
        .bind(storable(dying.last_error))
        .bind(dying.attempts)
        .bind(sealed.as_str())
        .fetch_one(&self.pool)
        .await?;
        Ok(row.try_get("mine")?)
    }

    /// The dead, newest first, at most `limit`.
    pub async fn dead(&self, limit: i64) -> Result<Vec<DeadWebhook>, StoreError> {
        let rows = sqlx::query(
            "-- dead.list
             select id, partition, sequence, subject, connection_id, reason, last_error, attempts, sealed
               from dead order by id desc limit $1",
        )
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let (id, subject): (i64, String) = (row.try_get("id")?, row.try_get("subject")?);
                let place = Place { owner: &subject, column: COLUMN };
                let wrong = |why: String| inconsistent(TABLE, "sealed", &id.to_string(), why);
                let sealed = Sealed::stored(row.try_get("sealed")?);
                let clear =
                    self.rings.tokens.open(place, &sealed).map_err(|e| wrong(e.to_string()))?;
                let kept: Kept =
                    serde_json::from_slice(&clear).map_err(|e| wrong(e.to_string()))?;
                let body = BASE64.decode(kept.body).map_err(|e| wrong(e.to_string()))?;
                Ok(DeadWebhook {
                    id,
                    partition: row.try_get("partition")?,
                    sequence: row.try_get("sequence")?,
                    connection: row.try_get("connection_id")?,
                    reason: row.try_get("reason")?,
                    last_error: row.try_get("last_error")?,
                    attempts: row.try_get("attempts")?,
                    headers: kept.headers,
                    body,
                    subject,
                })
            })
            .collect()
    }
}

/// A text that Postgres takes: anyone may send us a NUL, and no column holds one.
fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{fffd}").into() } else { text.into() }
}
