//! Ledger of partitions: numbers of webhooks that intake has committed, for `tidegate ledger
//! verify`.
//!
//! Webhooks are missing if the stream holds more of them up to a partition's cursor than were
//! committed. Purges write their rows before they act, so that the ledger subtracts them. Expiry in
//! the stream is not recorded: the stream then holds fewer webhooks than were committed, never
//! more.

use crate::store::{Store, StoreError};
use crate::{domain::ConnectionId, stream::Partition};
use sqlx::Row;

/// Webhooks of the current stream that a partition has committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LedgerEntry {
    /// Partition.
    pub partition: Partition,
    /// Generation of the stream.
    pub generation: i32,
    /// Creation time of the stream, in ns since 1970. `None` before the first read.
    pub stream_created_ns: Option<i64>,
    /// Sequence after which webhooks are counted.
    pub from: u64,
    /// Sequence up to which webhooks are committed.
    pub cursor: u64,
    /// Webhooks committed between the two.
    pub committed: u64,
    /// Webhooks up to the cursor that were purged since, as far as known.
    pub removed: u64,
}

impl Store {
    /// Returns the ledger of all partitions in order, from one snapshot.
    pub async fn ledger(&self) -> Result<Vec<LedgerEntry>, StoreError> {
        let rows = sqlx::query(
            "-- ledger.list
             select c.partition, c.generation, c.stream_created_ns, c.generation_from, c.cursor,
                    c.messages, (select coalesce(sum(r.removed), 0)::bigint from stream_removals r
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

    /// Records the coming purge of a connection's webhooks up to a partition's cursor. Returns the
    /// id of the row, for [`Store::record_removed`], and the cursor.
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
