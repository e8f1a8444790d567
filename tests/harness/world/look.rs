//! What a test asks of a world: what became of a webhook, who owns what, what was logged.

use super::{SOON, Worker, World};
use crate::{until::try_until, world::App};
use anyhow::Context;
use shared::{codec::envelope::DedupeKey, partition::Partition, store::Chat};
use sqlx::Row;

/// How a webhook was handled, as Postgres has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handled {
    /// Its sequence in the stream.
    pub sequence: i64,
    /// Its partition.
    pub partition: i16,
    /// Which worker did it.
    pub worker: String,
    /// The word for how it ended.
    pub outcome: String,
}

impl World {
    /// How a webhook was handled, once it was.
    pub async fn handled(&self, dedupe: &DedupeKey) -> Handled {
        self.try_handled(dedupe).await.expect("it is handled in time")
    }

    /// The same; an error when it is not in time.
    pub async fn try_handled(&self, dedupe: &DedupeKey) -> anyhow::Result<Handled> {
        let what = format!("{dedupe} is handled");
        try_until(&what, SOON, async || self.look(dedupe).await).await
    }

    /// How a webhook was handled, if it was.
    pub async fn look(&self, dedupe: &DedupeKey) -> Option<Handled> {
        let row = sqlx::query(
            "select sequence, partition, worker, outcome from seen where dedupe_key = $1",
        )
        .bind(dedupe.as_str())
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
            sqlx::query_scalar("select owner from partition_epochs where partition = $1")
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

    /// The same, once these words are in it: lines come a moment after what they tell of.
    pub async fn logged(&self, words: &str) -> anyhow::Result<String> {
        let said = async || Some(self.logs()).filter(|logs| logs.contains(words));
        let said = try_until(&format!("{words:?} is logged"), SOON, said).await;
        said.with_context(|| self.logs())
    }
}
