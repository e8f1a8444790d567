//! Leases on partitions: claim, renewal, release.
//!
//! A claim raises the epoch, the fencing token of every commit. All times are those of Postgres, so
//! that workers' clocks do not matter. Claims skip rows that another worker is claiming. Only
//! claims and commits write `partition_cursors`. Renewals write `partition_leases`, so that they
//! never wait for a commit. Statements that may wait for a commit do not use the connections for
//! leases.

use crate::store::{Store, StoreError, partition_of};
use crate::stream::Partition;
use sqlx::{Row, postgres::PgRow};
use std::time::Duration;
use time::OffsetDateTime;

/// Right to commit for a partition. A commit with an older epoch or generation changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FencingToken {
    /// Partition.
    pub partition: Partition,
    /// Epoch, raised by every claim.
    pub epoch: i64,
    /// Generation, raised by a stream reset.
    pub generation: i32,
}

/// Last committed message of a partition, which identifies the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LastMessage {
    /// Sequence.
    pub sequence: u64,
    /// Dedup key.
    pub key: String,
    /// Time at which the stream stored the message, by the server's clock.
    pub stored_at: OffsetDateTime,
}

/// Claimed partition.
#[derive(Debug, Clone)]
pub struct Lease {
    /// Right to commit.
    pub token: FencingToken,
    /// Position of intake.
    pub state: CursorState,
    /// Number of claims since the cursor moved, including this one.
    pub claims: i32,
    /// True if a webhook is marked: the previous process ended while it decided the webhook.
    pub is_suspecting: bool,
}

/// Position of intake in a partition.
#[derive(Debug, Clone)]
pub struct CursorState {
    /// Epoch of the last claim.
    pub epoch: i64,
    /// Generation of the stream.
    pub generation: i32,
    /// Sequence up to which everything is committed.
    pub cursor: u64,
    /// Creation time of the stream, in ns since 1970. `None` before the first read.
    pub stream_created_ns: Option<i64>,
    /// Last message of the partition. `None` before the first of this generation.
    pub last: Option<LastMessage>,
    /// Time up to which everything that the stream stored is committed.
    pub read_through: OffsetDateTime,
}

const STATE: &str = "partition, epoch, generation, cursor, stream_created_ns, last_sequence, \
                     last_key, last_stored_at, read_through, claims, suspect_sequence";

impl Store {
    /// Claims up to `count` partitions with an expired lease, except for `except`, and raises their
    /// epochs.
    pub async fn claim_partitions(
        &self,
        worker: &str,
        count: usize,
        except: &[Partition],
        ttl: Duration,
    ) -> Result<Vec<Lease>, StoreError> {
        let mut tx = self.leases.begin().await?;
        // Both rows are locked before the cursor is read: a commit in between would be missed. A
        // row that a hanging commit has locked is skipped.
        let free: Vec<i16> = sqlx::query_scalar(
            "-- leases.lock_free
             select l.partition from partition_leases l join partition_cursors c using (partition)
              where (l.lease_until < clock_timestamp()
                     -- Written before the clock was set back.
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
                let token = FencingToken {
                    partition: partition_of(row.try_get("partition")?)?,
                    epoch,
                    generation,
                };
                let suspect: Option<i64> = row.try_get("suspect_sequence")?;
                let claims = row.try_get("claims")?;
                Ok(Lease { token, state, claims, is_suspecting: suspect.is_some() })
            })
            .collect()
    }

    /// Returns whether the lease of any partition has expired or was released.
    pub async fn has_free_partition(&self) -> Result<bool, StoreError> {
        let free = sqlx::query_scalar(
            "-- leases.has_free
             select exists (select from partition_leases where lease_until < clock_timestamp())",
        );
        Ok(free.fetch_one(&self.leases).await?)
    }

    /// Renews leases, each with the last cursor that Postgres confirmed. Returns the partitions
    /// that are still held. A lease with an older cursor in Postgres is not renewed: Postgres was
    /// restored, and the lost messages are read again under another lease.
    pub async fn renew_partitions(
        &self,
        held: &[(FencingToken, u64)],
        ttl: Duration,
    ) -> Result<Vec<Partition>, StoreError> {
        let (tokens, cursors): (Vec<FencingToken>, Vec<i64>) =
            held.iter().map(|(token, cursor)| (*token, *cursor as i64)).unzip();
        let rows = sqlx::query(
            "-- leases.renew
             update partition_leases l set lease_until = clock_timestamp() +
                    make_interval(secs => $4)
               from unnest($1::smallint[], $2::bigint[], $3::bigint[]) as u
                    (partition, epoch, cursor)
               join partition_cursors c on c.partition = u.partition and c.cursor >= u.cursor
              where l.partition = u.partition and l.epoch = u.epoch returning l.partition",
        )
        .bind(numbers(&tokens))
        .bind(epochs(&tokens))
        .bind(cursors)
        .bind(ttl.as_secs_f64())
        .fetch_all(&self.leases)
        .await?;
        rows.iter().map(|row| partition_of(row.try_get("partition")?)).collect()
    }

    /// Releases partitions, so that another worker claims them without delay.
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

    /// Returns the cursor of a partition after a running write has finished. It shows whether a
    /// commit with an unknown result succeeded.
    pub async fn settled_cursor(&self, partition: Partition) -> Result<CursorState, StoreError> {
        let mut tx = self.pool.begin().await?;
        let sql = format!(
            "-- leases.settled_cursor
             select {STATE} from partition_cursors where partition = $1 for update"
        );
        let row = sqlx::query(sqlx::AssertSqlSafe(sql))
            .bind(partition.number() as i16)
            .fetch_one(&mut *tx)
            .await?;
        tx.rollback().await?;
        cursor_state(&row)
    }

    /// Records the stream of a partition's cursor, once per generation.
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
        .execute(&self.pool)
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
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Marks a webhook that is decided alone after claims without progress. Returns the number of
    /// marks without a commit in between. `None` if another worker has the partition.
    pub async fn suspect_webhook(
        &self,
        token: &FencingToken,
        sequence: u64,
    ) -> Result<Option<i32>, StoreError> {
        let row = sqlx::query(
            "-- leases.suspect
             update partition_cursors
                set suspect_count = case when suspect_sequence = $4 then suspect_count + 1
                    else 1 end,
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

    /// Withdraws the mark of a webhook whose process lost its lease but still runs. A later mark of
    /// the same webhook by the new owner stays.
    pub async fn withdraw_suspect(
        &self,
        partition: Partition,
        sequence: u64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "-- leases.withdraw_suspect
             update partition_cursors
                set suspect_count = suspect_count - 1,
                    suspect_sequence = case when suspect_count > 1 then suspect_sequence end
              where partition = $1 and suspect_sequence = $2 and suspect_count > 0",
        )
        .bind(partition.number() as i16)
        .bind(sequence as i64)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Clears the mark of a decided webhook, so that a later crash is not attributed to it.
    pub async fn clear_suspect(&self, token: &FencingToken) -> Result<(), StoreError> {
        sqlx::query(
            "-- leases.clear_suspect
             update partition_cursors set suspect_sequence = null, suspect_count = 0
              where partition = $1 and epoch = $2 and generation = $3",
        )
        .bind(token.partition.number() as i16)
        .bind(token.epoch)
        .bind(token.generation)
        .execute(&self.pool)
        .await?;
        Ok(())
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
