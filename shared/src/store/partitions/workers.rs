//! Rows of worker processes, to which running lanes and agent slots refer. Other workers free them
//! when the row expires.
//!
//! The id is random per process start, so that a restarted process never assumes ownership of its
//! former lanes. An expired row is never renewed: its process continues with a new id.

use crate::store::{Store, StoreError};
use sqlx::Row;
use std::time::Duration;

/// Maximum lanes freed by one statement.
const FREED_MAX: i64 = 1_000;

/// Numbers of workers, including the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LiveWorkers {
    /// Workers whose row has not expired and that take partitions.
    pub living: usize,
    /// Live workers that reach NATS.
    pub reading: usize,
}

impl Store {
    /// Inserts the row of a process, at its start or after its row expired.
    pub async fn register_worker(
        &self,
        id: &str,
        name: &str,
        ttl: Duration,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "-- workers.register
             insert into workers (id, name, alive_until)
             values ($1, $2, clock_timestamp() + make_interval(secs => $3))",
        )
        .bind(id)
        .bind(name)
        .bind(ttl.as_secs_f64())
        .execute(&self.leases)
        .await?;
        Ok(())
    }

    /// Renews a row and counts the workers. `None` if the row has expired.
    pub async fn renew_worker(
        &self,
        id: &str,
        reads: bool,
        stopping: bool,
        ttl: Duration,
    ) -> Result<Option<LiveWorkers>, StoreError> {
        let row = sqlx::query(
            "-- workers.renew
             with me as (
                 update workers set alive_until = clock_timestamp() + make_interval(secs => $4),
                        reads = $2, stopping = $3
                  where id = $1 and alive_until > clock_timestamp() returning 1),
             others as (
                 select reads from workers
                  where id <> $1 and alive_until > clock_timestamp() and not stopping)
             select exists (select from me) as alive, 1 + count(*) as living,
                    $2::int + count(*) filter (where reads) as reading from others",
        )
        .bind(id)
        .bind(reads)
        .bind(stopping)
        .bind(ttl.as_secs_f64())
        .fetch_one(&self.leases)
        .await?;
        if !row.try_get::<bool, _>("alive")? {
            return Ok(None);
        }
        let count = |column| row.try_get::<i64, _>(column).map(|n| usize::try_from(n).unwrap_or(1));
        Ok(Some(LiveWorkers { living: count("living")?, reading: count("reading")? }))
    }

    /// Marks expired rows, so that no statement with their ids begins. Returns the ids, for
    /// [`Store::free_worker`]. Claims hold the row `for key share`, so that `for update` waits for
    /// running ones or skips them.
    pub async fn expired_workers(&self, limit: i64) -> Result<Vec<String>, StoreError> {
        let ids = sqlx::query_scalar(
            "-- workers.expire
             update workers set alive_until = '-infinity'
              where id in (select id from workers where alive_until < clock_timestamp() limit $1
                              for update skip locked)
             returning id",
        );
        Ok(ids.bind(limit).fetch_all(&self.leases).await?)
    }

    /// Ends the row of a process that stops, so that no statement with its id begins.
    pub async fn retire_worker(&self, id: &str) -> Result<(), StoreError> {
        sqlx::query(
            "-- workers.retire
             update workers set alive_until = '-infinity'
              where id in (select id from workers where id = $1 for update)",
        )
        .bind(id)
        .execute(&self.leases)
        .await?;
        Ok(())
    }

    /// Frees all lanes and slots of an ended row, then deletes the row. Interrupted attempts of a
    /// crashed process count. A process that stopped has finished its attempts: it never learned of
    /// the claim of a remaining lane. Returns the number of lanes.
    pub async fn free_worker(&self, id: &str, died: bool) -> Result<u64, StoreError> {
        let (keep, mut lanes) = (if died { None } else { Some(&[][..]) }, 0);
        loop {
            let freed = self.release_delivery_lanes(id, keep, FREED_MAX).await?
                + self.release_outbox_lanes(id, keep, FREED_MAX).await?;
            lanes += freed;
            if freed == 0 {
                break;
            }
        }
        sqlx::query(
            "-- workers.delete
             delete from workers w
              where w.id = $1 and w.alive_until = '-infinity'
                and not exists (select from delivery_lanes where worker = w.id)
                and not exists (select from outbox_lanes where worker = w.id)
                and not exists (select from agent_slots where worker = w.id)",
        )
        .bind(id)
        .execute(&self.leases)
        .await?;
        Ok(lanes)
    }
}
