//! Queries of a test environment: outcomes of webhooks, owners, logs.

use super::{TIMEOUT, TestEnv, Worker};
use crate::{eventually::try_eventually, stream::Stored, test_env::App};
use anyhow::Context;
use shared::{
    store::{ConversationKey, DeadLetter, FailureFilter},
    stream::{DedupKey, Partition},
};
use sqlx::Row;

/// Reads the outcome of the webhook with dedup key `$1`, in one snapshot. The webhook is processed
/// if
///
/// * it has a processed key and no open delivery: the outcome is that of its delivery, else of
///   intake;
/// * it is a dead letter of intake, which may have no processed key;
/// * it was ignored, and has a row because it addressed the app;
/// * it was ignored without a row: its sequence `$3` of partition `$2` in the stream created at
///   `$4` is committed.
const FIND_OUTCOME: &str = "
    with processed as (
        select sequence, partition, outcome from processed_keys
         where key = substr(sha256(convert_to($1, 'UTF8')), 1, 16) limit 1),
    ended as (
        select worker, outcome from delivery_log where dedup_key = $1 order by at desc limit 1),
    found as (
        select 1 as rank, p.sequence, p.partition, e.worker,
               coalesce(e.outcome, (array['delivery', 'command', 'installation_event', 'notice', 'dead_letter',
                                          'trigger', 'deletion'])[p.outcome]) as outcome
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

/// Outcome of a webhook in Postgres.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookOutcome {
    /// Sequence in the stream.
    pub sequence: i64,
    /// Partition.
    pub partition: i16,
    /// Name of the worker that ended its delivery, else of the owner of its partition; may be
    /// empty.
    pub worker: String,
    /// Outcome of its delivery (`completed`, `dead_letter`, …), else of intake: `command`,
    /// `installation_event`, `notice`, `trigger`, `deletion`, `dead_letter` or `ignored`.
    pub outcome: String,
}

impl TestEnv {
    /// Waits for the outcome of a webhook. Panics if the webhook is not processed in time.
    pub async fn wait_for_outcome(&self, dedup_key: &DedupKey) -> WebhookOutcome {
        self.try_wait_for_outcome(dedup_key).await.expect("the webhook is processed in time")
    }

    /// Waits for the outcome of a webhook. Fails if the webhook is not processed in time.
    pub async fn try_wait_for_outcome(
        &self,
        dedup_key: &DedupKey,
    ) -> anyhow::Result<WebhookOutcome> {
        let what = format!("webhook {dedup_key} is processed");
        try_eventually(&what, TIMEOUT, async || self.find_outcome(dedup_key).await).await
    }

    /// Returns the outcome of a webhook, or `None` if it is not processed.
    pub async fn find_outcome(&self, dedup_key: &DedupKey) -> Option<WebhookOutcome> {
        if let Some(outcome) = self.query_outcome(dedup_key, None).await {
            return Some(outcome);
        }
        // Most ignored webhooks have no row, so their position in the stream is compared with the
        // cursor.
        let stored = self.find_stored(dedup_key).await?;
        self.query_outcome(dedup_key, Some(stored)).await
    }

    async fn query_outcome(
        &self,
        dedup_key: &DedupKey,
        stored: Option<Stored>,
    ) -> Option<WebhookOutcome> {
        let row = sqlx::query(FIND_OUTCOME)
            .bind(dedup_key.as_str())
            .bind(stored.map(|stored| stored.partition))
            .bind(stored.map(|stored| stored.sequence))
            .bind(stored.map(|stored| stored.created_ns))
            .fetch_optional(&self.pool)
            .await
            .ok()??;
        Some(WebhookOutcome {
            sequence: row.get("sequence"),
            partition: row.get("partition"),
            worker: row.get("worker"),
            outcome: row.get("outcome"),
        })
    }

    /// Returns the newest dead letters, at most a hundred.
    pub async fn dead_letters(&self) -> anyhow::Result<Vec<DeadLetter>> {
        Ok(self.store.dead_letters(&FailureFilter::default(), 100, true).await?)
    }

    /// Returns the agent that a conversation is bound to.
    pub async fn binding(&self, app: &App, channel: &str) -> anyhow::Result<Option<String>> {
        let (team, channel) = (app.team.parse()?, channel.parse()?);
        let chat = ConversationKey { connection: app.connection, team, channel };
        Ok(self
            .store
            .conversation_state(&chat, None)
            .await?
            .agent
            .map(|agent| agent.id.to_string()))
    }

    /// Returns the worker that owns the partition of a conversation.
    pub async fn owner_of(&self, app: &App, channel: &str) -> anyhow::Result<&Worker> {
        let partition = Partition::of(app.connection, Some(channel)).number() as i16;
        let owner: String =
            sqlx::query_scalar("select owner from partition_cursors where partition = $1")
                .bind(partition)
                .fetch_one(&self.pool)
                .await?;
        self.workers
            .iter()
            .find(|worker| worker.id == owner)
            .context("the owner of the partition is not a worker of this environment")
    }

    /// Returns the logs of all processes of the product.
    pub fn logs(&self) -> String {
        let ingests = self.ingests.iter().map(|ingest| ingest.process.log());
        ingests
            .chain(self.workers.iter().map(|worker| worker.process.log()))
            .chain(self.controls.iter().map(|control| control.process.log()))
            .collect::<Vec<_>>()
            .join("\n")
    }

    /// Waits until the logs contain a text, because log lines are written a moment after the event.
    /// Returns the logs.
    pub async fn wait_for_log(&self, words: &str) -> anyhow::Result<String> {
        let logged = async || Some(self.logs()).filter(|logs| logs.contains(words));
        let logged = try_eventually(&format!("{words:?} is logged"), TIMEOUT, logged).await;
        logged.with_context(|| self.logs())
    }
}
