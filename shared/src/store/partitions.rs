//! How partitions and their parked lanes stand, for people. Nothing here changes anything.

use super::{LIVE, Store, StoreError, moment};
use crate::partition::Lane;
use serde::Serialize;
use sqlx::Row;

/// How a partition stands.
#[derive(Debug, Clone, Serialize)]
pub struct PartitionState {
    /// Which.
    pub partition: i16,
    /// Who claimed it last.
    pub owner: Option<String>,
    /// How often it was claimed.
    pub epoch: i64,
    /// Whether that owner's lease still runs.
    pub held: bool,
    /// For how many milliseconds.
    pub lease_ms: i64,
    /// The generation of the stream its cursor belongs to.
    pub generation: i32,
    /// Everything up to this sequence is finished or set aside.
    pub cursor: i64,
}

/// How a parked lane stands.
#[derive(Debug, Clone, Serialize)]
pub struct LaneState {
    /// Which, in 16 hex digits.
    pub lane: String,
    /// Its partition.
    pub partition: i16,
    /// Whose it is; absent when nothing waits in it any more.
    pub connection: Option<String>,
    /// How many webhooks wait in it.
    pub depth: i64,
    /// Since when it is parked.
    pub parked_at: Option<String>,
    /// How often its head was tried in vain.
    pub attempts: i32,
    /// When its head is tried again.
    pub next_at: Option<String>,
    /// What the last try said.
    pub last_error: String,
}

impl Store {
    /// Every partition, in order.
    pub async fn partition_states(&self) -> Result<Vec<PartitionState>, StoreError> {
        let rows = sqlx::query(
            "-- partitions.list
             select partition, e.owner, e.epoch, l.lease_until > clock_timestamp() as held, l.generation, l.cursor,
                    case when l.lease_until > clock_timestamp()
                         then ceil(extract(epoch from l.lease_until - clock_timestamp()) * 1000)::bigint
                         else 0 end as lease_ms
               from partition_epochs e join partition_leases l using (partition) order by partition",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                Ok(PartitionState {
                    partition: row.try_get("partition")?,
                    owner: row.try_get("owner")?,
                    epoch: row.try_get("epoch")?,
                    held: row.try_get("held")?,
                    lease_ms: row.try_get("lease_ms")?,
                    generation: row.try_get("generation")?,
                    cursor: row.try_get("cursor")?,
                })
            })
            .collect()
    }

    /// The parked lanes, longest parked first, at most `limit`.
    pub async fn lane_states(&self, limit: i64) -> Result<Vec<LaneState>, StoreError> {
        let rows = sqlx::query(
            "-- lanes.list
             with parked as (
                 select scope, generation, lane, partition, parked_at, attempts, next_at, last_error from lanes
                  where parked_at is not null and scope = $1 order by parked_at, lane limit $2)
             select p.lane, p.partition, p.parked_at, p.attempts, p.next_at, p.last_error,
                    b.connection_id, b.depth
               from parked p, lateral (
                    select min(connection_id) as connection_id, count(*) as depth from lane_backlog
                     where scope = p.scope and generation = p.generation and lane = p.lane) b
              order by p.parked_at, p.lane",
        )
        .bind(LIVE)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let lane = Lane::from_bits(row.try_get("lane")?).to_string();
                Ok(LaneState {
                    partition: row.try_get("partition")?,
                    connection: row.try_get("connection_id")?,
                    depth: row.try_get("depth")?,
                    parked_at: moment(row, "lanes", &lane, "parked_at")?,
                    attempts: row.try_get("attempts")?,
                    next_at: moment(row, "lanes", &lane, "next_at")?,
                    last_error: row.try_get("last_error")?,
                    lane,
                })
            })
            .collect()
    }
}
