//! Leases on partitions: claimed, renewed, given back.
//!
//! A claim raises the epoch, the fencing token of every commit. All times are Postgres's own, so workers' clocks don't
//! matter. Claiming skips rows that another worker is claiming. `partition_cursors` is written by claims and commits alone;
//! renewals write `partition_leases`, so that they never wait for a commit.

use super::super::{Store, StoreError, inconsistent};
use crate::partition::Partition;
use sqlx::{Row, postgres::PgRow};
use std::time::Duration;
use time::OffsetDateTime;

/// The right to commit for a partition. A commit under an older epoch or generation changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FencingToken {
    /// The partition.
    pub partition: Partition,
    /// Raised by every claim.
    pub epoch: i64,
    /// Raised when the stream is another one.
    pub generation: i32,
}

/// The last own message that was committed: by it a stream is recognized.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastMessage {
    /// Its sequence.
    pub sequence: u64,
    /// Its dedup key.
    pub key: String,
    /// When the stream got it, by the server's clock.
    pub stored_at: OffsetDateTime,
}

/// A partition just claimed.
#[derive(Debug, Clone)]
pub struct Lease {
    /// The right to commit.
    pub token: FencingToken,
    /// How far intake has committed.
    pub state: CursorState,
    /// Claims since the cursor moved, this one included.
    pub claims: i32,
    /// Whether a webhook is marked: it was decided alone when the process before ended.
    pub is_suspecting: bool,
}

/// How far a partition is.
#[derive(Debug, Clone)]
pub struct CursorState {
    /// The epoch of its last claim.
    pub epoch: i64,
    /// The generation of the stream that it counts in.
    pub generation: i32,
    /// Everything up to this sequence is committed.
    pub cursor: u64,
    /// When the stream was created, in ns since 1970; `None` before it was first read.
    pub stream_created_ns: Option<i64>,
    /// The last own message; `None` before the first one of this generation.
    pub last: Option<LastMessage>,
    /// Everything that the stream got before this time is committed.
    pub read_through: OffsetDateTime,
}

const STATE: &str = "partition, epoch, generation, cursor, stream_created_ns, last_sequence, last_key, \
                     last_stored_at, read_through, claims, suspect_sequence";

impl Store {
    /// Claims up to `count` partitions whose lease has run out, but none of `except`, raising their epochs.
    pub async fn claim_partitions(
        &self,
        worker: &str,
        count: usize,
        except: &[Partition],
        ttl: Duration,
    ) -> Result<Vec<Lease>, StoreError> {
        let mut tx = self.leases.begin().await?;
        // Both rows are locked first and the cursor is read after that, or a commit in between would be missed. A commit
        // that is stuck holds its row, and must not hold up the claim of others.
        let free: Vec<i16> = sqlx::query_scalar(
            "-- leases.lock_free
             select l.partition from partition_leases l join partition_cursors c using (partition)
              where (l.lease_until < clock_timestamp()
                     -- Written before the clock went back.
                     or l.lease_until > clock_timestamp() + make_interval(secs => 2 * $2))
                and l.partition <> all ($3)
              order by random() limit $1 for update of l, c skip locked",
        )
        .bind(count as i64)
        .bind(ttl.as_secs_f64())
        .bind(except.iter().map(|partition| partition.number() as i16).collect::<Vec<_>>())
        .fetch_all(&mut *tx)
        .await?;
        let sql = format!(
            "-- leases.claim
             with c as (
                 update partition_cursors set owner = $1, epoch = epoch + 1, claims = claims + 1
                  where partition = any ($2) returning {STATE}),
             l as (
                 update partition_leases l
                    set lease_until = clock_timestamp() + make_interval(secs => $3), epoch = c.epoch
                   from c where l.partition = c.partition)
             select * from c"
        );
        let rows = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(worker)
            .bind(&free)
            .bind(ttl.as_secs_f64())
            .fetch_all(&mut *tx)
            .await?;
        tx.commit().await?;
        rows.iter()
            .map(|row| {
                let state = cursor_state(row)?;
                let CursorState { epoch, generation, .. } = state;
                let token = FencingToken { partition: partition_of(row)?, epoch, generation };
                let suspect: Option<i64> = row.try_get("suspect_sequence")?;
                let claims = row.try_get("claims")?;
                Ok(Lease { token, state, claims, is_suspecting: suspect.is_some() })
            })
            .collect()
    }

    /// Returns whether the lease of some partition has run out or was given back.
    pub async fn has_free_partition(&self) -> Result<bool, StoreError> {
        let free = sqlx::query_scalar(
            "-- leases.has_free
             select exists (select from partition_leases where lease_until < clock_timestamp())",
        );
        Ok(free.fetch_one(&self.leases).await?)
    }

    /// Renews leases. Returns the partitions that are still held.
    pub async fn renew_partitions(
        &self,
        held: &[FencingToken],
        ttl: Duration,
    ) -> Result<Vec<Partition>, StoreError> {
        let rows = sqlx::query(
            "-- leases.renew
             update partition_leases l set lease_until = clock_timestamp() + make_interval(secs => $3)
               from unnest($1::smallint[], $2::bigint[]) as u (partition, epoch)
              where l.partition = u.partition and l.epoch = u.epoch returning l.partition",
        )
        .bind(numbers(held))
        .bind(epochs(held))
        .bind(ttl.as_secs_f64())
        .fetch_all(&self.leases)
        .await?;
        rows.iter().map(partition_of).collect()
    }

    /// Gives partitions back, so that the next worker claims them at once.
    pub async fn release_partitions(&self, held: &[FencingToken]) -> Result<(), StoreError> {
        sqlx::query(
            "-- leases.release
             update partition_leases l set lease_until = '-infinity'
               from unnest($1::smallint[], $2::bigint[]) as u (partition, epoch)
              where l.partition = u.partition and l.epoch = u.epoch",
        )
        .bind(numbers(held))
        .bind(epochs(held))
        .execute(&self.leases)
        .await?;
        Ok(())
    }

    /// The cursor of a partition, once whatever writes it now is done: the answer to a commit with an unknown result.
    pub async fn settled_cursor(&self, partition: Partition) -> Result<CursorState, StoreError> {
        let mut tx = self.leases.begin().await?;
        let sql = format!(
            "-- leases.settled_cursor\n select {STATE} from partition_cursors where partition = $1 for update"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(partition.number() as i16)
            .fetch_one(&mut *tx)
            .await?;
        tx.rollback().await?;
        cursor_state(&row)
    }

    /// Records which stream a partition's cursor counts in, once per generation.
    pub async fn record_stream(
        &self,
        token: &FencingToken,
        created_ns: i64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "-- leases.record_stream
             update partition_cursors set stream_created_ns = $3
              where partition = $1 and epoch = $2 and stream_created_ns is null",
        )
        .bind(token.partition.number() as i16)
        .bind(token.epoch)
        .bind(created_ns)
        .execute(&self.leases)
        .await?;
        Ok(())
    }

    /// Records that an idle partition is read up to a time of the stream's server.
    pub async fn advance_read_through(
        &self,
        token: &FencingToken,
        through: OffsetDateTime,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "-- leases.advance_read_through
             update partition_cursors set read_through = greatest(read_through, $4)
              where partition = $1 and epoch = $2 and generation = $3",
        )
        .bind(token.partition.number() as i16)
        .bind(token.epoch)
        .bind(token.generation)
        .bind(through)
        .execute(&self.leases)
        .await?;
        Ok(())
    }

    /// Marks a webhook before it is decided alone, after claims without progress. Returns how often it was marked without a
    /// commit since; `None` when the partition is another worker's.
    pub async fn suspect_webhook(
        &self,
        token: &FencingToken,
        sequence: u64,
    ) -> Result<Option<i32>, StoreError> {
        let row = sqlx::query(
            "-- leases.suspect
             update partition_cursors
                set suspect_count = case when suspect_sequence = $4 then suspect_count + 1 else 1 end,
                    suspect_sequence = $4
              where partition = $1 and epoch = $2 and generation = $3 returning suspect_count",
        )
        .bind(token.partition.number() as i16)
        .bind(token.epoch)
        .bind(token.generation)
        .bind(sequence as i64)
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| Ok(row.try_get("suspect_count")?)).transpose()
    }
}

fn numbers(held: &[FencingToken]) -> Vec<i16> {
    held.iter().map(|token| token.partition.number() as i16).collect()
}

fn epochs(held: &[FencingToken]) -> Vec<i64> {
    held.iter().map(|token| token.epoch).collect()
}

fn cursor_state(row: &PgRow) -> Result<CursorState, StoreError> {
    let sequence: Option<i64> = row.try_get("last_sequence")?;
    let key: Option<String> = row.try_get("last_key")?;
    let stored_at: Option<OffsetDateTime> = row.try_get("last_stored_at")?;
    let last = match (sequence, key, stored_at) {
        (Some(sequence), Some(key), Some(stored_at)) => {
            Some(LastMessage { sequence: sequence as u64, key, stored_at })
        }
        _ => None,
    };
    Ok(CursorState {
        epoch: row.try_get("epoch")?,
        generation: row.try_get("generation")?,
        cursor: row.try_get::<i64, _>("cursor")? as u64,
        stream_created_ns: row.try_get("stream_created_ns")?,
        last,
        read_through: row.try_get("read_through")?,
    })
}

pub(super) fn partition_of(row: &PgRow) -> Result<Partition, StoreError> {
    let number: i16 = row.try_get("partition")?;
    u16::try_from(number).ok().and_then(|n| Partition::try_from(n).ok()).ok_or_else(|| {
        inconsistent("partition_leases", "partition", &number.to_string(), "not below 64")
    })
}
