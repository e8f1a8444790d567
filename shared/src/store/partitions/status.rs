//! The state of partitions, for people. Nothing here changes anything.

use crate::store::{Store, StoreError, moment};
use serde::Serialize;
use sqlx::Row;

/// The state of a partition.
#[derive(Debug, Clone, Serialize)]
pub struct PartitionState {
    /// Its number.
    pub partition: i16,
    /// The worker that claimed it last.
    pub owner: Option<String>,
    /// How often it was claimed.
    pub epoch: i64,
    /// Whether that worker's lease has not run out.
    pub held: bool,
    /// For how many milliseconds.
    pub lease_ms: i64,
    /// The generation of the stream that its cursor counts in.
    pub generation: i32,
    /// Everything up to this sequence is committed.
    pub cursor: i64,
    /// Webhooks committed in this generation.
    pub messages: i64,
    /// Everything that the stream got before this time is committed.
    pub read_through: Option<String>,
    /// Deliveries that wait or run, by their lanes.
    pub deliveries: i64,
}

impl Store {
    /// Every partition, in order.
    pub async fn partition_states(&self) -> Result<Vec<PartitionState>, StoreError> {
        let rows = sqlx::query(
            "-- partitions.list
             select partition, c.owner, c.epoch, l.lease_until > clock_timestamp() as held, c.generation, c.cursor,
                    c.messages, c.read_through,
                    case when l.lease_until > clock_timestamp()
                         then ceil(extract(epoch from l.lease_until - clock_timestamp()) * 1000)::bigint
                         else 0 end as lease_ms,
                    (select coalesce(sum(d.tail - d.head + 1), 0)::bigint from delivery_lanes d
                      where d.partition = c.partition) as deliveries
               from partition_cursors c join partition_leases l using (partition) order by partition",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let partition: i16 = row.try_get("partition")?;
                let key = partition.to_string();
                Ok(PartitionState {
                    partition,
                    owner: row.try_get("owner")?,
                    epoch: row.try_get("epoch")?,
                    held: row.try_get("held")?,
                    lease_ms: row.try_get("lease_ms")?,
                    generation: row.try_get("generation")?,
                    cursor: row.try_get("cursor")?,
                    messages: row.try_get("messages")?,
                    read_through: moment(row, "partition_cursors", &key, "read_through")?,
                    deliveries: row.try_get("deliveries")?,
                })
            })
            .collect()
    }
}
