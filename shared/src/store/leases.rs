//! Who owns which partition: claimed, renewed, given back.
//!
//! A lease is a row with an end; an epoch counts its owners. All times are Postgres's own, so workers' clocks
//! don't matter. Claiming skips rows somebody else is claiming.

use super::{Store, StoreError, inconsistent};
use crate::partition::Partition;
use sqlx::{Row, postgres::PgRow};
use std::time::Duration;
use time::OffsetDateTime;

/// A partition just claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leased {
    /// Which.
    pub partition: Partition,
    /// The epoch it is held under.
    pub epoch: i64,
    /// The generation of the stream its cursor belongs to.
    pub generation: i32,
    /// Everything up to this sequence is finished.
    pub cursor: u64,
    /// Everything that the stream got before this is finished.
    pub cursor_at: OffsetDateTime,
    /// Once the cursor is here, what was parked in an older generation can be judged.
    pub settle_after: Option<u64>,
    /// Which stream that sequence counts in, by when it was made; `None` before the first reading.
    pub stream_created_ns: Option<i64>,
}

/// A partition held, and how far it is.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// Which.
    pub partition: Partition,
    /// The epoch it is held under.
    pub epoch: i64,
    /// The generation of the stream its cursor belongs to.
    pub generation: i32,
    /// Everything up to this sequence is finished.
    pub cursor: u64,
    /// Everything that the stream got before this is finished.
    pub cursor_at: OffsetDateTime,
}

/// How many workers there are, the one that asks among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Alive {
    /// Those that said lately that they live.
    pub living: usize,
    /// Those of them that reach NATS.
    pub reading: usize,
}

impl Store {
    /// Says that this worker lives, and whether it reads. Gives how many live, and how many of them read.
    pub async fn worker_alive(
        &self,
        worker: &str,
        reads: bool,
        ttl: Duration,
    ) -> Result<Alive, StoreError> {
        let row = sqlx::query(
            "-- workers.alive
             with me as (
                 insert into workers (id, reads) values ($1, $2)
                 on conflict (id) do update set alive_at = clock_timestamp(), reads = $2),
             others as (
                 select reads from workers
                  where id <> $1 and alive_at > clock_timestamp() - make_interval(secs => $3))
             select 1 + count(*) as living, $2::int + count(*) filter (where reads) as reading from others",
        )
        .bind(worker)
        .bind(reads)
        .bind(ttl.as_secs_f64())
        .fetch_one(&self.leases)
        .await?;
        let count = |column| row.try_get::<i64, _>(column).map(|n| usize::try_from(n).unwrap_or(1));
        Ok(Alive { living: count("living")?, reading: count("reading")? })
    }

    /// Says that this worker takes no more partitions.
    pub async fn worker_gone(&self, worker: &str) -> Result<(), StoreError> {
        sqlx::query("-- workers.gone\n delete from workers where id = $1")
            .bind(worker)
            .execute(&self.leases)
            .await?;
        Ok(())
    }

    /// Claims up to `count` partitions that nobody holds, raising their epochs.
    pub async fn claim_partitions(
        &self,
        worker: &str,
        count: usize,
        ttl: Duration,
    ) -> Result<Vec<Leased>, StoreError> {
        let mut tx = self.leases.begin().await?;
        // The locks come first and the cursor is read after, or a cursor saved in between would be missed. Both
        // rows: a commit that is stuck holds the epoch, and its partition must not hold up the others.
        let free: Vec<i16> = sqlx::query_scalar(
            "-- leases.lock_free
             select l.partition from partition_leases l join partition_epochs e using (partition)
              where l.lease_until < clock_timestamp()
              order by random() limit $1 for update of l, e skip locked",
        )
        .bind(count as i64)
        .fetch_all(&mut *tx)
        .await?;
        let rows = sqlx::query(
            "-- leases.claim
             with e as (
                 update partition_epochs set owner = $1, epoch = epoch + 1
                  where partition = any ($2) returning partition, epoch)
             update partition_leases l
                set lease_until = clock_timestamp() + make_interval(secs => $3), epoch = e.epoch
               from e where l.partition = e.partition
             returning l.partition, l.epoch, l.generation, l.cursor, l.cursor_at, l.settle_after, l.stream_created_ns",
        )
        .bind(worker)
        .bind(&free)
        .bind(ttl.as_secs_f64())
        .fetch_all(&mut *tx)
        .await?;
        tx.commit().await?;
        rows.iter().map(leased).collect()
    }

    /// Renews what is held and saves its cursors. Gives the partitions still held; the others are lost.
    pub async fn renew_partitions(
        &self,
        held: &[Held],
        ttl: Duration,
    ) -> Result<Vec<Partition>, StoreError> {
        let rows = columns(
            "-- leases.renew
             update partition_leases l
                set lease_until = clock_timestamp() + make_interval(secs => $6), cursor = greatest(l.cursor, u.cursor),
                    cursor_at = greatest(l.cursor_at, u.cursor_at)
               from unnest($1::smallint[], $2::bigint[], $3::integer[], $4::bigint[], $5::timestamptz[])
                    as u (partition, epoch, generation, cursor, cursor_at)
              where l.partition = u.partition and l.epoch = u.epoch and l.generation = u.generation
             returning l.partition",
            held,
        )
        .bind(ttl.as_secs_f64())
        .fetch_all(&self.leases)
        .await?;
        rows.iter().map(partition_of).collect()
    }

    /// Gives partitions back, finished up to their cursors: whoever is next takes them at once.
    pub async fn release_partitions(&self, held: &[Held]) -> Result<(), StoreError> {
        columns(
            "-- leases.release
             update partition_leases l
                set lease_until = '-infinity', cursor = greatest(l.cursor, u.cursor),
                    cursor_at = greatest(l.cursor_at, u.cursor_at)
               from unnest($1::smallint[], $2::bigint[], $3::integer[], $4::bigint[], $5::timestamptz[])
                    as u (partition, epoch, generation, cursor, cursor_at)
              where l.partition = u.partition and l.epoch = u.epoch and l.generation = u.generation",
            held,
        )
        .execute(&self.leases)
        .await?;
        Ok(())
    }
}

type Statement = sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments>;

/// A statement about partitions held: their columns are its first five arrays.
fn columns(sql: &'static str, held: &[Held]) -> Statement {
    sqlx::query(sql)
        .bind(held.iter().map(|h| h.partition.number() as i16).collect::<Vec<_>>())
        .bind(held.iter().map(|h| h.epoch).collect::<Vec<_>>())
        .bind(held.iter().map(|h| h.generation).collect::<Vec<_>>())
        .bind(held.iter().map(|h| h.cursor as i64).collect::<Vec<_>>())
        .bind(held.iter().map(|h| h.cursor_at).collect::<Vec<_>>())
}

impl Store {
    /// Notes which stream a partition's cursor counts in, once and for all of this generation.
    pub async fn note_stream(&self, held: &Held, created_ns: i64) -> Result<(), StoreError> {
        sqlx::query(
            "-- leases.note_stream
             update partition_leases set stream_created_ns = $3
              where partition = $1 and epoch = $2 and stream_created_ns is null",
        )
        .bind(held.partition.number() as i16)
        .bind(held.epoch)
        .bind(created_ns)
        .execute(&self.leases)
        .await?;
        Ok(())
    }
}

fn leased(row: &PgRow) -> Result<Leased, StoreError> {
    Ok(Leased {
        partition: partition_of(row)?,
        epoch: row.try_get("epoch")?,
        generation: row.try_get("generation")?,
        cursor: row.try_get::<i64, _>("cursor")? as u64,
        cursor_at: row.try_get("cursor_at")?,
        settle_after: row.try_get::<Option<i64>, _>("settle_after")?.map(|after| after as u64),
        stream_created_ns: row.try_get("stream_created_ns")?,
    })
}

fn partition_of(row: &PgRow) -> Result<Partition, StoreError> {
    let number: i16 = row.try_get("partition")?;
    u16::try_from(number).ok().and_then(|n| Partition::try_from(n).ok()).ok_or_else(|| {
        inconsistent("partition_leases", "partition", &number.to_string(), "not below 64")
    })
}
