//! Runs: deliveries whose agent answers by a stream.
//!
//! Dispatch uses it. A run belongs to a delivery's lane: the fence of every write is (worker,
//! claim) in the lane row, so that a worker whose row expired changes nothing. Each part of the
//! answer is stored before it is sent to Slack. The message in Slack that is being written is a
//! segment; parts of earlier segments are deleted.

mod begin;
mod controls;
mod save;

pub use begin::{BegunRun, NewRun};
pub use controls::{RunControl, RunControlReason};
pub use save::RunWrite;

use super::{ClaimedDelivery, Store, StoreError, inconsistent};
use crate::{
    domain::ConnectionId,
    secrets::{KeyRing, SealContext, SealedValue},
    stream::Lane,
};
use sqlx::{Row, postgres::PgRow};
use std::time::Duration;

/// Column that parts are sealed for.
pub const RUN_PART_COLUMN: &str = "run_parts.payload";

/// Column that questions to people are sealed for.
pub const RUN_ASK_COLUMN: &str = "runs.ask";

/// Key of a run: that of its delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the columns' names
pub struct RunKey {
    pub connection: ConnectionId,
    pub lane: Lane,
    pub position: i64,
}

impl From<&ClaimedDelivery> for RunKey {
    fn from(delivery: &ClaimedDelivery) -> Self {
        let key = &delivery.key;
        Self { connection: key.connection, lane: key.lane, position: key.position }
    }
}

/// State of the segment that is being written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SegmentState {
    /// The next part begins a segment.
    #[default]
    None,
    /// Slack may have the first part.
    Starting,
    /// Slack has the message, and perhaps the part after the last confirmed one.
    Open,
}

/// Progress of a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RunState {
    /// Id of the agent's last event that is in a part.
    pub last_event_id: Option<String>,
    /// Number of parts so far. The first part is 1.
    pub parts: i32,
    /// Last part that Slack confirmed.
    pub sent: i32,
    /// First part of the segment.
    pub segment_from: i32,
    /// State of the segment.
    pub segment: SegmentState,
    /// True if the segment is a message that is edited, instead of a stream.
    pub edited: bool,
    /// Id of the segment's message in Slack.
    pub ts: Option<String>,
    /// Bytes of text so far.
    pub text_bytes: i64,
    /// Outcome, once the agent has ended.
    pub ended: Option<String>,
    /// Question to a person that ends the answer, in the worker's format.
    pub ask: Option<Vec<u8>>,
}

/// Part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunPart {
    /// Number.
    pub n: i32,
    /// True if it begins a segment.
    pub begins: bool,
    /// Content, in the worker's format.
    pub content: Vec<u8>,
}

/// Run of an earlier attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredRun {
    /// Progress.
    pub state: RunState,
    /// Parts of the segment and later ones.
    pub parts: Vec<RunPart>,
    /// Age of the segment.
    pub segment_age: Duration,
}

impl SegmentState {
    fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Starting => "starting",
            Self::Open => "open",
        }
    }

    fn parse(word: &str) -> Self {
        match word {
            "starting" => Self::Starting,
            "open" => Self::Open,
            _ => Self::None,
        }
    }
}

impl Store {
    /// Returns the run of a delivery's earlier attempt.
    pub async fn stored_run(&self, key: RunKey) -> Result<Option<StoredRun>, StoreError> {
        let rows = sqlx::query(
            "-- runs.load
             select r.last_event_id, r.parts, r.sent, r.segment_from, r.segment, r.edited, r.ts,
                    r.text_bytes, r.ended, r.ask,
                    extract(epoch from now() - r.segment_at)::float8 as segment_age,
                    p.n, p.begins, p.payload
               from runs r left join run_parts p
                    on p.connection_id = r.connection_id and p.lane = r.lane
                   and p.position = r.position
              where r.connection_id = $1 and r.lane = $2 and r.position = $3 order by p.n",
        )
        .bind(key.connection.to_string())
        .bind(key.lane.to_bits())
        .bind(key.position)
        .fetch_all(&self.pool)
        .await?;
        let Some(first) = rows.first() else { return Ok(None) };
        let age: f64 = first.try_get("segment_age")?;
        let mut run = StoredRun {
            state: state(first, &self.rings.tokens, key)?,
            parts: Vec::new(),
            segment_age: Duration::from_secs_f64(age.max(0.0)),
        };
        for row in &rows {
            let Some(n) = row.try_get::<Option<i32>, _>("n")? else { continue };
            let sealed: Vec<u8> = row.try_get("payload")?;
            let owner = part_owner(key, n);
            let content = self.rings.tokens.open_bytes(context(&owner), &sealed);
            let content = content.map_err(|e| inconsistent("run_parts", "payload", &owner, e))?;
            let begins = row.try_get("begins")?;
            run.parts.push(RunPart { n, begins, content: content.to_vec() });
        }
        Ok(Some(run))
    }

    /// Returns whether messages of a lane wait to be sent.
    pub async fn has_outbox_messages(
        &self,
        connection: ConnectionId,
        lane: Lane,
    ) -> Result<bool, StoreError> {
        let found = sqlx::query_scalar(
            "-- runs.outbox_waits
             select exists (select from outbox_lanes
                             where lane = $2 and connection_id = $1 and head <= tail)",
        );
        Ok(found.bind(connection.to_string()).bind(lane.to_bits()).fetch_one(&self.pool).await?)
    }
}

fn state(row: &PgRow, ring: &KeyRing, key: RunKey) -> Result<RunState, StoreError> {
    let ask = match row.try_get::<Option<String>, _>("ask")? {
        Some(sealed) => {
            let owner = run_owner(key);
            let context = SealContext { owner: &owner, column: RUN_ASK_COLUMN };
            let opened = ring.open(context, &SealedValue::from_stored(sealed));
            Some(opened.map_err(|e| inconsistent("runs", "ask", &owner, e))?.to_vec())
        }
        None => None,
    };
    Ok(RunState {
        last_event_id: row.try_get("last_event_id")?,
        parts: row.try_get("parts")?,
        sent: row.try_get("sent")?,
        segment_from: row.try_get("segment_from")?,
        segment: SegmentState::parse(row.try_get("segment")?),
        edited: row.try_get("edited")?,
        ts: row.try_get("ts")?,
        text_bytes: row.try_get("text_bytes")?,
        ended: row.try_get("ended")?,
        ask,
    })
}

fn run_owner(key: RunKey) -> String {
    format!("{}/{}/{}", key.connection, key.lane.to_bits(), key.position)
}

fn part_owner(key: RunKey, n: i32) -> String {
    format!("{}/{n}", run_owner(key))
}

fn seal_ask(ring: &KeyRing, write: &RunWrite) -> Result<Option<String>, StoreError> {
    let Some(ask) = &write.state.ask else { return Ok(None) };
    let owner = run_owner(write.key);
    let context = SealContext { owner: &owner, column: RUN_ASK_COLUMN };
    Ok(Some(ring.seal(context, ask)?.as_str().to_owned()))
}

fn context(owner: &str) -> SealContext<'_> {
    SealContext { owner, column: RUN_PART_COLUMN }
}

fn seal(ring: &KeyRing, key: RunKey, part: &RunPart) -> Result<Vec<u8>, StoreError> {
    Ok(ring.seal_bytes(context(&part_owner(key, part.n)), &part.content)?)
}
