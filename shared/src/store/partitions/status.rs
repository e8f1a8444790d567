//! State of partitions for operators. Read-only.

use crate::store::{Store, StoreError, timestamp};
use serde::Serialize;
use sqlx::Row;

/// State of a partition.
#[derive(Debug, Clone, Serialize)]
pub struct PartitionState {
    /// Number.
    pub partition: i16,
    /// Worker of the last claim.
    pub owner: Option<String>,
    /// Epoch of the last claim.
    pub epoch: i64,
    /// True if the lease has not expired.
    pub held: bool,
    /// Remaining lease in milliseconds.
    pub lease_ms: i64,
    /// Generation of the stream.
    pub generation: i32,
    /// Sequence up to which everything is committed.
    pub cursor: i64,
    /// Webhooks committed in this generation.
    pub messages: i64,
    /// Time up to which everything that the stream stored is committed.
    pub read_through: Option<String>,
    /// Number of waiting and running deliveries.
    pub deliveries: i64,
}

impl Store {
    /// Returns all partitions, in order.
    pub async fn partition_states(&self) -> Result<Vec<PartitionState>, StoreError> {
        let rows = sqlx::query(
            "-- partitions.list
             select partition, c.owner, c.epoch, l.lease_until > clock_timestamp() as held,
                    c.generation, c.cursor, c.messages, c.read_through,
                    case when l.lease_until > clock_timestamp()
                         then ceil(extract(epoch from l.lease_until - clock_timestamp()) *
                                   1000)::bigint
                         else 0 end as lease_ms,
                    (select coalesce(sum(d.tail - d.head + 1), 0)::bigint from delivery_lanes d
                      where d.partition = c.partition) as deliveries
               from partition_cursors c join partition_leases l using (partition)
              order by partition",
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
                    read_through: timestamp(row, "partition_cursors", &key, "read_through")?,
                    deliveries: row.try_get("deliveries")?,
                })
            })
            .collect()
    }
}
