//! The ledger of partitions: how many webhooks intake has committed, to be compared with what the stream holds.
//!
//! A webhook that the stream holds up to a partition's cursor and that was not committed would be missing. Purges write their
//! rows before they act, so that what they remove is not missing. Webhooks that the stream drops by age are not recorded:
//! it then holds fewer than were committed, never more.

use crate::store::{Store, StoreError};
use crate::{partition::Partition, types::ConnectionId};
use sqlx::Row;

/// What a partition has committed of the present stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerEntry {
    /// The partition.
    pub partition: Partition,
    /// The generation of the stream that its cursor counts in.
    pub generation: i32,
    /// When that stream was created, in ns since 1970; `None` before it was first read.
    pub stream_created_ns: Option<i64>,
    /// Webhooks after this sequence are counted.
    pub from: u64,
    /// Webhooks up to this sequence are committed.
    pub cursor: u64,
    /// Webhooks committed between the two.
    pub committed: u64,
    /// Webhooks up to the cursor that were purged from the stream since, as far as is known.
    pub removed: u64,
}

impl Store {
    /// Returns the ledger of every partition, in order, as of one moment.
    pub async fn ledger(&self) -> Result<Vec<LedgerEntry>, StoreError> {
        let rows = sqlx::query(
            "-- ledger.list
             select c.partition, c.generation, c.stream_created_ns, c.generation_from, c.cursor, c.messages,
                    (select coalesce(sum(r.removed), 0)::bigint from stream_removals r
                      where r.partition = c.partition and r.generation = c.generation) as removed
               from partition_cursors c order by c.partition",
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let number: i16 = row.try_get("partition")?;
                let partition =
                    u16::try_from(number).ok().and_then(|n| Partition::try_from(n).ok());
                let partition = partition.ok_or_else(|| {
                    let key = number.to_string();
                    crate::store::inconsistent(
                        "partition_cursors",
                        "partition",
                        &key,
                        "is above 63",
                    )
                })?;
                let count = |column| row.try_get::<i64, _>(column).map(|n| n.max(0) as u64);
                Ok(LedgerEntry {
                    partition,
                    generation: row.try_get("generation")?,
                    stream_created_ns: row.try_get("stream_created_ns")?,
                    from: count("generation_from")?,
                    cursor: count("cursor")?,
                    committed: count("messages")?,
                    removed: count("removed")?,
                })
            })
            .collect()
    }

    /// Records that what a connection sent is about to be purged up to the cursor of a partition. Returns the row's id, and
    /// the cursor. [`Store::record_removed`] completes it.
    pub async fn record_connection_removal(
        &self,
        partition: Partition,
        connection: ConnectionId,
    ) -> Result<(i64, u64), StoreError> {
        let row = sqlx::query(
            "-- ledger.record_removal
             insert into stream_removals (partition, generation, subject, up_to)
             select partition, generation, $2, cursor from partition_cursors where partition = $1
             returning id, up_to",
        )
        .bind(partition.number() as i16)
        .bind(crate::stream::subject(partition, connection))
        .fetch_one(&self.pool)
        .await?;
        Ok((row.try_get("id")?, row.try_get::<i64, _>("up_to")?.max(0) as u64))
    }
}
