//! Claimed messages of the outbox: rows with their opened requests.

use super::enqueue::{COLUMN, Request};
use crate::store::{Store, StoreError, column, inconsistent};
use crate::{
    domain::{ConnectionId, HeaderToken, OutgoingMessage},
    secrets::{SealContext, SealedValue, UnsealError},
    stream::{DedupKey, Lane},
};
use sha2::{Digest, Sha256};
use sqlx::{Row, postgres::PgRow};
use std::time::Duration;

const TABLE: &str = "outbox";

/// Claimed message.
#[derive(Debug)]
pub struct OutboxMessage {
    /// Id, equal in every attempt.
    pub id: i64,
    /// Connection.
    pub connection: ConnectionId,
    /// Lane. Its next message is claimed after this one has ended.
    pub lane: Lane,
    /// Worker row.
    pub worker: String,
    /// Number of the turn, unique per message.
    pub turn: i64,
    /// Number of this attempt. The first is 1.
    pub attempts: i32,
    /// Earlier attempts that panicked or ended the process.
    pub crashes: i32,
    /// Dedup key of the webhook that it replies to.
    pub dedup_key: DedupKey,
    /// Message.
    pub outgoing: OutgoingMessage,
    /// Trace context of the webhook's request.
    pub traceparent: Option<HeaderToken>,
    /// Earlier uses of the webhook's `response_url`, by all its messages.
    pub uses: i64,
    /// Time since the enqueueing, without pauses of sending.
    pub age: Duration,
    /// Time of the enqueueing by Postgres's clock, since 1970.
    pub written_at: Duration,
    /// True if an earlier attempt may have sent it.
    pub ambiguous: bool,
}

impl OutboxMessage {
    /// Returns the mark that identifies Slack's copy of this message: equal in every attempt, and
    /// without information for its readers.
    pub fn mark(&self) -> String {
        let text = format!("outbox\0{}\0{}", self.dedup_key, self.id);
        let hash: [u8; 32] = Sha256::digest(text.as_bytes()).into();
        hash[..16].iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }
}

/// Message that can't be opened or parsed.
#[derive(Debug)]
pub struct UnreadableMessage {
    /// Connection.
    pub connection: ConnectionId,
    /// Lane.
    pub lane: Lane,
    /// Number of the turn.
    pub turn: i64,
    /// Number of this attempt.
    pub attempts: i32,
    /// Failure.
    pub why: String,
    /// True if a newer release or a missing key may read it.
    pub may_be_readable: bool,
}

impl Store {
    /// Opens the request of a claimed row.
    pub(super) fn outbox_message(
        &self,
        row: &PgRow,
        worker: &str,
    ) -> Result<Result<OutboxMessage, UnreadableMessage>, StoreError> {
        let id: i64 = row.try_get("id")?;
        let connection: ConnectionId = column(row, TABLE, &id.to_string(), "connection_id")?;
        let lane = Lane::from_bits(row.try_get("lane")?);
        let (turn, attempts) = (row.try_get("turn")?, row.try_get("attempts")?);
        let dedup_key = DedupKey::from_stored(row.try_get("dedup_key")?);
        let unreadable = |why: String, may_be_readable| UnreadableMessage {
            connection,
            lane,
            turn,
            attempts,
            why,
            may_be_readable,
        };
        let owner = format!("{connection}/{dedup_key}");
        let context = SealContext { owner: &owner, column: COLUMN };
        let sealed = SealedValue::from_stored(row.try_get("request")?);
        let clear = match self.rings.tokens.open(context, &sealed) {
            Ok(clear) => clear,
            Err(error) => {
                let missing_key = matches!(error, UnsealError::UnknownKey(_));
                return Ok(Err(unreadable(error.to_string(), missing_key)));
            }
        };
        let request: Request<OutgoingMessage> = match serde_json::from_slice(&clear) {
            Ok(request) => request,
            // A newer release may have written the request.
            Err(error) => {
                let why = inconsistent(TABLE, "request", &id.to_string(), error).to_string();
                return Ok(Err(unreadable(why, true)));
            }
        };
        Ok(Ok(OutboxMessage {
            id,
            connection,
            lane,
            worker: worker.to_owned(),
            turn,
            attempts,
            crashes: row.try_get("crashes")?,
            dedup_key,
            outgoing: request.outgoing,
            traceparent: request.traceparent.and_then(HeaderToken::new),
            uses: row.try_get::<i32, _>("uses")?.into(),
            age: Duration::from_secs_f64(row.try_get::<f64, _>("age")?.max(0.0)),
            written_at: Duration::from_secs_f64(row.try_get::<f64, _>("written_at")?.max(0.0)),
            ambiguous: row.try_get("ambiguous")?,
        }))
    }
}
