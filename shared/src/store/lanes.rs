//! Parked lanes: webhooks set aside in Postgres, as pointers into the stream, so that the cursor can pass them.
//!
//! A row of `lane_backlog` is a webhook that waits; rows of a lane are worked in the order of their sequences. They leave by
//! being committed or buried (those statements delete the row they are about). `lanes` keeps how often a parked lane's
//! head was tried in vain and when it is tried again, so that an owner that comes later goes on counting.

use super::{
    Owner, Store, StoreError, column,
    owner::{mine, owned},
};
use crate::{codec::envelope::DedupeKey, partition::Lane, types::ConnectionId};
use sqlx::Row;
use std::time::Duration;
use time::OffsetDateTime;

/// A webhook to be set aside.
#[derive(Debug, Clone)]
pub struct Spilled {
    /// Its lane.
    pub lane: Lane,
    /// Its sequence in the stream.
    pub sequence: u64,
    /// Its connection.
    pub connection: ConnectionId,
    /// Its dedupe key.
    pub dedupe: DedupeKey,
    /// When the stream got it; unknown for what an earlier release set aside.
    pub stored_at: Option<OffsetDateTime>,
}

/// A parked lane, as its next owner finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ParkedLane {
    /// The lane.
    pub lane: Lane,
    /// How many webhooks wait in it.
    pub depth: u64,
    /// How its head fared so far.
    pub trouble: Trouble,
}

/// How the head of a parked lane fares.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Trouble {
    /// How often it was tried in vain.
    pub attempts: i32,
    /// How often that was its own fault.
    pub faults: i32,
    /// Until it is tried again.
    pub wait: Duration,
}

impl Store {
    /// Sets webhooks aside, under the owner's epoch. False: somebody else owns the partition, and nothing changed.
    /// Running twice leaves one row each.
    pub async fn spill(&self, owner: &Owner, spilled: &[Spilled]) -> Result<bool, StoreError> {
        let lanes: Vec<i64> = spilled.iter().map(|s| s.lane.to_bits()).collect();
        let sequences: Vec<i64> = spilled.iter().map(|s| s.sequence as i64).collect();
        let connections: Vec<String> = spilled.iter().map(|s| s.connection.to_string()).collect();
        let dedupes: Vec<&str> = spilled.iter().map(|s| s.dedupe.as_str()).collect();
        let stored_ats: Vec<_> = spilled.iter().map(|s| s.stored_at).collect();
        let row = owned(
            concat!(
                "-- lanes.spill\n",
                mine!(),
                ", u as (
                     select * from unnest($6::bigint[], $7::bigint[], $8::text[], $9::text[], $10::timestamptz[])
                         as u (lane, sequence, connection_id, dedupe_key, stored_at)),
                 parked as (
                     insert into lanes (scope, generation, lane, partition, last_seq, parked_at)
                     select distinct $4, $5::integer, u.lane, $1::smallint, 0, now() from u, mine order by u.lane
                     on conflict (scope, generation, lane)
                     do update set parked_at = coalesce(lanes.parked_at, now())),
                 rows as (
                     insert into lane_backlog (scope, generation, lane, sequence, partition, connection_id, dedupe_key,
                                               stored_at)
                     select $4, $5, u.lane, u.sequence, $1, u.connection_id, u.dedupe_key, u.stored_at from u, mine
                     on conflict do nothing)
                 select exists (select from mine) as mine"
            ),
            owner,
        )
        .bind(lanes)
        .bind(sequences)
        .bind(connections)
        .bind(dedupes)
        .bind(stored_ats)
        .fetch_one(&self.pool)
        .await?;
        Ok(row.try_get("mine")?)
    }

    /// The parked lanes of a partition.
    pub async fn parked_lanes(&self, owner: &Owner) -> Result<Vec<ParkedLane>, StoreError> {
        let rows = sqlx::query(
            "-- lanes.parked
             select b.lane, count(*) as depth, coalesce(max(l.attempts), 0) as attempts, coalesce(max(l.faults), 0) as faults,
                    greatest(coalesce(extract(epoch from max(l.next_at) - now()), 0), 0)::float8 as wait
               from lane_backlog b left join lanes l using (scope, generation, lane)
              where b.scope = $1 and b.generation = $2 and b.partition = $3 group by b.lane",
        )
        .bind(owner.scope.as_ref())
        .bind(owner.generation)
        .bind(owner.partition.number() as i16)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let trouble = Trouble {
                    attempts: row.try_get("attempts")?,
                    faults: row.try_get("faults")?,
                    wait: Duration::from_secs_f64(row.try_get("wait")?),
                };
                let depth: i64 = row.try_get("depth")?;
                Ok(ParkedLane {
                    lane: Lane::from_bits(row.try_get("lane")?),
                    depth: depth as u64,
                    trouble,
                })
            })
            .collect()
    }

    /// The next webhooks of a parked lane, up to a sequence, in order.
    pub async fn backlog(
        &self,
        owner: &Owner,
        lane: Lane,
        up_to: u64,
        limit: i64,
    ) -> Result<Vec<Spilled>, StoreError> {
        let rows = sqlx::query(
            "-- lanes.backlog
             select sequence, connection_id, dedupe_key, stored_at from lane_backlog
              where scope = $1 and generation = $2 and lane = $3 and sequence <= $4 order by sequence limit $5",
        )
        .bind(owner.scope.as_ref())
        .bind(owner.generation)
        .bind(lane.to_bits())
        .bind(i64::try_from(up_to).unwrap_or(i64::MAX))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let sequence: i64 = row.try_get("sequence")?;
                Ok(Spilled {
                    lane,
                    sequence: sequence as u64,
                    connection: column(
                        row,
                        "lane_backlog",
                        &sequence.to_string(),
                        "connection_id",
                    )?,
                    dedupe: DedupeKey::stored(row.try_get("dedupe_key")?),
                    stored_at: row.try_get("stored_at")?,
                })
            })
            .collect()
    }

    /// Writes down how a parked lane's head fares.
    pub async fn note_trouble(
        &self,
        owner: &Owner,
        lane: Lane,
        trouble: Trouble,
        error: &str,
    ) -> Result<(), StoreError> {
        owned(
            concat!(
                "-- lanes.note_trouble\n",
                mine!(),
                " update lanes
                     set attempts = $7, faults = $8, next_at = now() + make_interval(secs => $9), last_error = $10
                    from mine where scope = $4 and generation = $5 and lane = $6"
            ),
            owner,
        )
        .bind(lane.to_bits())
        .bind(trouble.attempts)
        .bind(trouble.faults)
        .bind(trouble.wait.as_secs_f64())
        .bind(error.replace('\0', "\u{fffd}"))
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// A parked lane is empty: it is a lane like any other again. A row set aside meanwhile keeps it parked.
    pub async fn unpark(&self, owner: &Owner, lane: Lane) -> Result<(), StoreError> {
        owned(
            concat!(
                "-- lanes.unpark\n",
                mine!(),
                " update lanes l set parked_at = null, attempts = 0, faults = 0, next_at = null, last_error = ''
                    from mine
                   where l.scope = $4 and l.generation = $5 and l.lane = $6
                     and not exists (select 1 from lane_backlog b
                                      where b.scope = l.scope and b.generation = l.generation and b.lane = l.lane)"
            ),
            owner,
        )
        .bind(lane.to_bits())
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
