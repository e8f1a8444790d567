//! Generations of the stream: continuation of a partition after a stream reset.
//!
//! The sequences of another stream refer to other webhooks. The generation is therefore raised, and
//! the partition is read again from the time up to which it was committed. `processed_keys`
//! prevents repeated effects.

use super::FencingToken;
use crate::store::{Store, StoreError};
use crate::stream::Partition;

/// Start of a partition in another stream.
#[derive(Debug, Clone, Copy)]
pub struct NewGeneration {
    /// Creation time of the stream, in ns since 1970.
    pub created_ns: i64,
    /// Sequence up to which everything is committed, or older than the last commit.
    pub cursor: u64,
}

impl Store {
    /// Raises the generation of a held partition and releases its lease. Returns false, without a
    /// change, if the partition is no longer held.
    pub async fn bump_generation(
        &self,
        token: &FencingToken,
        new: NewGeneration,
    ) -> Result<bool, StoreError> {
        let raised = sqlx::query(
            "-- generations.bump
             with raised as (
                 update partition_cursors
                    set generation = generation + 1, stream_created_ns = $4, cursor = $5,
                        generation_from = $5, messages = 0, last_sequence = null, last_key = null,
                        last_stored_at = null
                  where partition = $1 and epoch = $2 and generation = $3 returning partition)
             update partition_leases l set lease_until = '-infinity' from raised
              where l.partition = raised.partition",
        )
        .bind(token.partition.number() as i16)
        .bind(token.epoch)
        .bind(token.generation)
        .bind(new.created_ns)
        .bind(new.cursor as i64)
        .execute(&self.pool)
        .await?;
        Ok(raised.rows_affected() == 1)
    }

    /// Returns the generation of a partition.
    pub(in crate::store) async fn current_generation(
        &self,
        partition: Partition,
    ) -> Result<i32, StoreError> {
        let generation = sqlx::query_scalar(
            "-- generations.current
             select generation from partition_cursors where partition = $1",
        );
        Ok(generation.bind(partition.number() as i16).fetch_one(&self.pool).await?)
    }

    /// Records that messages of a partition will be purged, for the ledger. Returns the id of the
    /// record. `None`, without a record, if the partition is no longer held: in another stream the
    /// same sequences belong to webhooks that no worker has read.
    pub async fn record_removal(
        &self,
        token: &FencingToken,
        subject: &str,
        up_to: u64,
    ) -> Result<Option<i64>, StoreError> {
        let id = sqlx::query_scalar(
            "-- stream_removals.insert
             insert into stream_removals (partition, generation, subject, up_to)
             select partition, generation, $3, $4 from partition_cursors
              where partition = $1 and generation = $2 and epoch = $5
             returning id",
        );
        Ok(id
            .bind(token.partition.number() as i16)
            .bind(token.generation)
            .bind(subject)
            .bind(up_to as i64)
            .bind(token.epoch)
            .fetch_optional(&self.pool)
            .await?)
    }

    /// Records the number of purged messages. Merges the rows of earlier purges of the same subject
    /// into this one.
    pub async fn record_removed(&self, id: i64, removed: u64) -> Result<(), StoreError> {
        sqlx::query(
            "-- stream_removals.removed
             with earlier as (
                 delete from stream_removals e using stream_removals r
                  where r.id = $1 and e.partition = r.partition and e.generation = r.generation
                    and e.subject = r.subject and e.id < r.id and e.removed is not null
                 returning e.removed)
             update stream_removals
                set removed = $2 + (select coalesce(sum(removed), 0)::bigint from earlier)
              where id = $1",
        )
        .bind(id)
        .bind(removed as i64)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
