//! What became of webhooks that the stream holds: every one is somewhere, or somebody has to know.
//!
//! In: a batch of what the stream holds. Out: the fate of each, from one snapshot of Postgres. A webhook's row is
//! written in the transaction that makes its fate, and before its partition's cursor passes it; so one snapshot finds
//! it in one place, or it is lost.

use super::{LIVE, Store, StoreError, inconsistent};
use crate::partition::{Lane, Partition};
use serde::Serialize;
use sqlx::Row;
use std::time::Duration;

/// What is done is remembered for this long after; what was stored before that can't be told from what was lost.
pub const DONE_KEPT: Duration = Duration::from_secs(48 * 3600);

/// A webhook as the stream holds it.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its sequence.
    pub sequence: u64,
    /// Its partition; absent when its subject is no partition's.
    pub partition: Option<Partition>,
    /// Its lane; absent when it names none.
    pub lane: Option<Lane>,
    /// Its dedupe key; absent when it names none.
    pub dedupe: Option<String>,
}

/// What became of a webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// It is in `seen`.
    Done,
    /// It waits in `lane_backlog`.
    Parked,
    /// It is in `dead`.
    Dead,
    /// Its partition's cursor has not passed it.
    InFlight,
    /// It is nowhere.
    Missing,
}

impl Fate {
    /// Every one, as they are listed.
    pub const ALL: [Fate; 5] =
        [Fate::Done, Fate::Parked, Fate::Dead, Fate::InFlight, Fate::Missing];

    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Fate::Done => "done",
            Fate::Parked => "parked",
            Fate::Dead => "dead",
            Fate::InFlight => "in_flight",
            Fate::Missing => "missing",
        }
    }
}

impl Store {
    /// The fates of these webhooks, in their order.
    pub async fn fates(&self, stored: &[Stored]) -> Result<Vec<Fate>, StoreError> {
        let sequences: Vec<i64> = stored.iter().map(|s| s.sequence as i64).collect();
        let partitions: Vec<Option<i16>> =
            stored.iter().map(|s| s.partition.map(|p| p.number() as i16)).collect();
        let lanes: Vec<Option<i64>> = stored.iter().map(|s| s.lane.map(Lane::to_bits)).collect();
        // A NUL fits no column, so nothing with one is there under that key.
        let dedupes: Vec<Option<&str>> =
            stored.iter().map(|s| s.dedupe.as_deref().filter(|key| !key.contains('\0'))).collect();
        let rows = sqlx::query(
            "-- audit.fates
             select case
                    when exists (select from dead d where d.scope = $1 and d.generation = l.generation
                                    and d.sequence = u.sequence) then 'dead'
                    when exists (select from seen s where s.scope = $1 and s.dedupe_key = u.dedupe_key)
                      or exists (select from seen s where s.scope = $1
                                    and s.dedupe_key = 'discarded:' || l.generation || ':' || u.sequence) then 'done'
                    when exists (select from lane_backlog b where b.scope = $1 and b.generation = l.generation
                                    and b.lane = u.lane and b.sequence = u.sequence) then 'parked'
                    when u.sequence > l.cursor then 'in_flight'
                    else 'missing' end as fate
               from unnest($2::bigint[], $3::smallint[], $4::bigint[], $5::text[]) with ordinality
                    as u (sequence, partition, lane, dedupe_key, n)
               left join partition_leases l using (partition)
              order by u.n",
        )
        .bind(LIVE)
        .bind(sequences)
        .bind(partitions)
        .bind(lanes)
        .bind(dedupes)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let word: String = row.try_get("fate")?;
                let fate = Fate::ALL.into_iter().find(|fate| fate.as_str() == word);
                fate.ok_or_else(|| inconsistent("audit", "fate", &word, "is no fate"))
            })
            .collect()
    }
}
