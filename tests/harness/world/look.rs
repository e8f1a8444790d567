//! Questions of a test to a world: the outcome of a webhook, owners, logs.

use super::{SOON, Worker, World};
use crate::{stream::Stored, until::try_until, world::App};
use anyhow::Context;
use shared::{
    codec::envelope::DedupeKey,
    partition::Partition,
    store::{Chat, DeadLetter, DeadLetterFilter},
};
use sqlx::Row;

/// Reads the outcome of the webhook with dedup key `$1`, in one snapshot. It is handled when
///
/// * it has a processed key and no delivery of it is open: the outcome of its delivery, else what it was processed as;
/// * it is a dead letter of intake, which may have no processed key;
/// * it was ignored, and has a row for that because it was addressed to the app;
/// * it was ignored without a row: it lies at `$3` of partition `$2` in the stream made at `$4`, which is committed.
const LOOK: &str = "
    with processed as (
        select sequence, partition, outcome from processed_keys
         where key = substr(sha256(convert_to($1, 'UTF8')), 1, 16) limit 1),
    ended as (
        select worker, outcome from delivery_log where dedup_key = $1 order by at desc limit 1),
    found as (
        select 1 as rank, p.sequence, p.partition, e.worker,
               coalesce(e.outcome, (array['delivery', 'command', 'installation_event', 'notice', 'dead_letter',
                                          'trigger'])[p.outcome]) as outcome
          from processed p left join ended e on true
         where not exists (select from deliveries where dedup_key = $1)
        union all
        select 2, sequence, partition, null, 'dead_letter' from dead_letters
         where dedup_key = $1 and stage = 'intake' and not exists (select from processed)
        union all
        select 3, sequence, partition, null, 'ignored' from ignored_webhooks
         where dedup_key = $1 and not exists (select from processed)
        union all
        select 4, $3::bigint, partition, null, 'ignored' from partition_cursors
         where partition = $2::smallint and cursor >= $3 and stream_created_ns = $4::bigint
           and not exists (select from processed))
    select f.sequence, f.partition, coalesce(nullif(f.worker, ''), c.owner, '') as worker, f.outcome
      from found f join partition_cursors c using (partition) order by f.rank limit 1";

/// The outcome of a webhook, as Postgres has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handled {
    /// Its sequence in the stream.
    pub sequence: i64,
    /// Its partition.
    pub partition: i16,
    /// The name of the worker that ended its delivery, else of the owner of its partition.
    pub worker: String,
    /// The outcome of its delivery (`completed`, `dead_letter`, …), else what intake did: `command`,
    /// `installation_event`, `notice`, `dead_letter` or `ignored`.
    pub outcome: String,
}

impl World {
    /// The outcome of a webhook, once it is handled.
    pub async fn handled(&self, dedupe: &DedupeKey) -> Handled {
        self.try_handled(dedupe).await.expect("it is handled in time")
    }

    /// The same; an error when it is not handled in time.
    pub async fn try_handled(&self, dedupe: &DedupeKey) -> anyhow::Result<Handled> {
        let what = format!("{dedupe} is handled");
        try_until(&what, SOON, async || self.look(dedupe).await).await
    }

    /// The outcome of a webhook; `None` when it is not handled.
    pub async fn look(&self, dedupe: &DedupeKey) -> Option<Handled> {
        if let Some(handled) = self.look_at(dedupe, None).await {
            return Some(handled);
        }
        // Most of what is ignored has no row: then its place in the stream is asked for.
        let stored = self.stored_as(dedupe).await?;
        self.look_at(dedupe, Some(stored)).await
    }

    async fn look_at(&self, dedupe: &DedupeKey, stored: Option<Stored>) -> Option<Handled> {
        let row = sqlx::query(LOOK)
            .bind(dedupe.as_str())
            .bind(stored.map(|stored| stored.partition))
            .bind(stored.map(|stored| stored.sequence))
            .bind(stored.map(|stored| stored.created_ns))
            .fetch_optional(&self.pool)
            .await
            .ok()??;
        Some(Handled {
            sequence: row.get("sequence"),
            partition: row.get("partition"),
            worker: row.get("worker"),
            outcome: row.get("outcome"),
        })
    }

    /// The newest dead letters, at most a hundred.
    pub async fn dead_letters(&self) -> anyhow::Result<Vec<DeadLetter>> {
        Ok(self.store.dead_letters(&DeadLetterFilter::default(), 100, true).await?)
    }

    /// The agent that a conversation is bound to.
    pub async fn binding(&self, app: &App, channel: &str) -> anyhow::Result<Option<String>> {
        let (team, channel) = (app.team.parse()?, channel.parse()?);
        let chat = Chat { connection: app.connection, team, channel };
        Ok(self.store.chat(&chat, None).await?.agent.map(|agent| agent.id.to_string()))
    }

    /// The worker that owns a conversation's partition.
    pub async fn owner_of(&self, app: &App, channel: &str) -> anyhow::Result<&Worker> {
        let partition = Partition::of(app.connection, Some(channel)).number() as i16;
        let owner: String =
            sqlx::query_scalar("select owner from partition_cursors where partition = $1")
                .bind(partition)
                .fetch_one(&self.pool)
                .await?;
        self.workers.iter().find(|worker| worker.id == owner).context("its owner is none of ours")
    }

    /// What all processes of the product logged.
    pub fn logs(&self) -> String {
        let ingests = self.ingests.iter().map(|ingest| ingest.process.log());
        ingests
            .chain(self.workers.iter().map(|worker| worker.process.log()))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// The same, once these words are in it: lines come a moment after what they report.
    pub async fn logged(&self, words: &str) -> anyhow::Result<String> {
        let said = async || Some(self.logs()).filter(|logs| logs.contains(words));
        let said = try_until(&format!("{words:?} is logged"), SOON, said).await;
        said.with_context(|| self.logs())
    }
}
