//! Who may write: the owner of a partition, or of a replay, under an epoch.
//!
//! Every statement that changes what belongs to a webhook begins with [`mine`], which finds a row only while its
//! owner's epoch is the present one, and holds it: a worker whose lease was taken over changes nothing, wherever it was
//! when it froze.

use super::LIVE;
use crate::partition::Partition;
use sqlx::{Postgres, postgres::PgArguments, query::Query};
use std::borrow::Cow;

/// The right to write: a worker, as the owner of a partition under an epoch.
#[derive(Debug, Clone)]
pub struct Owner {
    /// Which flow: the live one, or a replay. Each has its own `seen` and lanes.
    pub scope: Cow<'static, str>,
    /// The worker.
    pub worker: String,
    /// The partition.
    pub partition: Partition,
    /// Raised by every claim of the partition; an older one is fenced off.
    pub epoch: i64,
    /// Raised when the stream is not the one it was; lanes count anew.
    pub generation: i32,
}

impl Owner {
    /// The owner of a partition of the live flow.
    pub fn live(worker: &str, partition: Partition, epoch: i64, generation: i32) -> Self {
        Self { scope: LIVE.into(), worker: worker.to_owned(), partition, epoch, generation }
    }
}

/// The head of a statement that only an owner may run: `$1` to `$5` are partition, worker, epoch, scope and generation
/// (see [`owned`]), and the table `mine` has a row while they are true. In a replay the partition says only where its
/// outgoing messages belong.
macro_rules! mine {
    () => {
        "with live as (
             select 1 from partition_epochs
              where $4 = 'live' and partition = $1 and owner = $2 and epoch = $3 for share),
         replayed as (
             select 1 from replays where scope = $4 and owner = $2 and epoch = $3 for share),
         mine as (select 1 from live union all select 1 from replayed)"
    };
}
pub(super) use mine;

/// A statement whose first five parameters say who runs it.
pub(super) fn owned<'q>(sql: &'static str, owner: &'q Owner) -> Query<'q, Postgres, PgArguments> {
    sqlx::query(sql)
        .bind(owner.partition.number() as i16)
        .bind(owner.worker.as_str())
        .bind(owner.epoch)
        .bind(owner.scope.as_ref())
        .bind(owner.generation)
}
