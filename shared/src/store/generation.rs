//! Generations of the stream: what happens to a partition when the stream is not the one that was read.
//!
//! Sequences of another stream (made anew, cut short, or with a hole) mean other webhooks. So the generation is raised:
//! lanes and what is set aside count anew, and the partition is read again from the time before which all of it was
//! finished; `seen` keeps effects single. What was set aside under an older generation points to nothing any more. It is
//! most likely read again with the rest; once that was read, whatever is neither done nor set aside anew is left over.

use super::{
    Held, Owner, Store, StoreError, column,
    owner::{mine, owned},
};
use crate::{codec::envelope::DedupeKey, partition::Lane, types::ConnectionId};
use sqlx::Row;
use time::OffsetDateTime;

/// A webhook that was set aside under an older generation, and is nowhere else.
#[derive(Debug, Clone)]
pub struct Leftover {
    /// Its generation.
    pub generation: i32,
    /// What its sequence was.
    pub sequence: u64,
    /// Its lane.
    pub lane: Lane,
    /// Its connection.
    pub connection: ConnectionId,
    /// Its dedupe key.
    pub dedupe: DedupeKey,
}

impl Store {
    /// The time before which everything of a partition is finished, set aside or not.
    pub async fn unfinished_since(&self, held: &Held) -> Result<OffsetDateTime, StoreError> {
        let row = sqlx::query(
            "-- generation.unfinished_since
             select least($2, cursor_at, (select min(coalesce(stored_at, 'epoch')) from lane_backlog b
                                           where b.scope = 'live' and b.partition = l.partition)) as since
               from partition_leases l where partition = $1",
        )
        .bind(held.partition.number() as i16)
        .bind(held.cursor_at)
        .fetch_one(&self.leases)
        .await?;
        Ok(row.try_get("since")?)
    }

    /// Raises the generation of a partition that is still held, to be read after `cursor` of the stream made at
    /// `created_ns`, and gives it back: whoever claims it next goes on. What was set aside is judged after `settle_after`.
    /// False: it is not held any more, and nothing changed.
    pub async fn raise_generation(
        &self,
        held: &Held,
        created_ns: i64,
        cursor: u64,
        settle_after: u64,
    ) -> Result<bool, StoreError> {
        let raised = sqlx::query(
            "-- generation.raise
             update partition_leases
                set generation = generation + 1, stream_created_ns = $4, cursor = $5, settle_after = $6,
                    lease_until = '-infinity'
              where partition = $1 and epoch = $2 and generation = $3",
        )
        .bind(held.partition.number() as i16)
        .bind(held.epoch)
        .bind(held.generation)
        .bind(created_ns)
        .bind(cursor as i64)
        .bind(settle_after as i64)
        .execute(&self.leases)
        .await?;
        Ok(raised.rows_affected() == 1)
    }

    /// Forgets what was set aside under older generations and is done, dead or set aside anew; gives what is left over.
    pub async fn leftovers(&self, owner: &Owner) -> Result<Vec<Leftover>, StoreError> {
        let rows = owned(
            concat!(
                "-- generation.leftovers\n",
                mine!(),
                ", older as (
                     select b.ctid, b.generation, b.sequence, b.lane, b.connection_id, b.dedupe_key,
                            exists (select 1 from seen s where s.scope = $4 and s.dedupe_key = b.dedupe_key)
                         or exists (select 1 from lane_backlog n
                                     where n.scope = $4 and n.partition = $1 and n.generation = $5
                                       and n.dedupe_key = b.dedupe_key) as elsewhere
                       from lane_backlog b, mine
                      where b.scope = $4 and b.partition = $1 and b.generation < $5),
                 gone as (
                     delete from lane_backlog where ctid in (select ctid from older where elsewhere))
                 select generation, sequence, lane, connection_id, dedupe_key from older where not elsewhere
                  order by generation, sequence"
            ),
            owner,
        )
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let sequence: i64 = row.try_get("sequence")?;
                let key = sequence.to_string();
                Ok(Leftover {
                    generation: row.try_get("generation")?,
                    sequence: sequence as u64,
                    lane: Lane::from_bits(row.try_get("lane")?),
                    connection: column(row, "lane_backlog", &key, "connection_id")?,
                    dedupe: DedupeKey::stored(row.try_get("dedupe_key")?),
                })
            })
            .collect()
    }

    /// Notes that nothing is left over of older generations.
    pub async fn settled(&self, owner: &Owner) -> Result<(), StoreError> {
        owned(
            concat!(
                "-- generation.settled\n",
                mine!(),
                ", lanes as (
                     update lanes l set parked_at = null from mine
                      where l.scope = $4 and l.partition = $1 and l.generation < $5 and l.parked_at is not null)
                 update partition_leases p set settle_after = null from mine where p.partition = $1"
            ),
            owner,
        )
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}
