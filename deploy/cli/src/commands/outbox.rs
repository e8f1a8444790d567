//! `tidegate outbox failures`: messages that Slack refused for good. Their text is never printed.

use crate::{
    output::{self, nothing_matched},
    settings::StoreSettings,
};
use anyhow::ensure;
use shared::{
    store::{OutboxFailure, OutboxFailureFilter, Store},
    types::ConnectionId,
};

const COLUMNS: [output::Column; 7] = [
    ("id", true),
    ("connection", false),
    ("channel", false),
    ("method", false),
    ("attempts", true),
    ("given up at", false),
    ("error", false),
];

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Outbox {
    /// Manage messages that Slack refused for good.
    #[command(subcommand)]
    Failures(Failures),
}

/// The verbs of `tidegate outbox failures`.
#[derive(Debug, clap::Subcommand)]
pub enum Failures {
    /// List failures, the newest first.
    List(List),
    /// Send messages once more, behind what their conversations send now.
    Retry(Act),
    /// Delete failures for good; their messages are never sent.
    Delete(Act),
}

/// Settings of `tidegate outbox failures list`.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    store: StoreSettings,
    /// Only those of this connection.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// Only those whose error contains this text.
    #[arg(long)]
    error: Option<String>,
    /// How many at most.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

/// Settings of `tidegate outbox failures retry` and `delete`.
#[derive(Debug, clap::Args)]
pub struct Act {
    #[command(flatten)]
    store: StoreSettings,
    /// These, by their ids.
    #[arg(conflicts_with = "all")]
    ids: Vec<i64>,
    /// All of them.
    #[arg(long)]
    all: bool,
    /// Of all, those of this connection.
    #[arg(long, requires = "all")]
    connection: Option<ConnectionId>,
    /// Of all, those whose error contains this text.
    #[arg(long, requires = "all")]
    error: Option<String>,
    /// Act on all that match; without this they are only counted. Not needed to retry ids.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Outbox {
    /// Runs the verb.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Outbox::Failures(Failures::List(list)) => list.run().await,
            Outbox::Failures(Failures::Retry(act)) => {
                let (store, filter) = act.confirmed("retry", act.yes || !act.all).await?;
                let ids = store.retry_outbox_failures(&filter).await?;
                act.done("retried", ids.len())
            }
            Outbox::Failures(Failures::Delete(act)) => {
                let (store, filter) = act.confirmed("delete for good", act.yes).await?;
                let ids = store.delete_outbox_failures(&filter).await?;
                act.done("deleted", ids.len())
            }
        }
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let filter =
            OutboxFailureFilter { ids: None, connection: self.connection, error: self.error };
        let failures = self.store.open()?.outbox_failures(&filter, i64::from(self.limit)).await?;
        if failures.is_empty() {
            return nothing_matched("there are no such failures");
        }
        if self.json {
            return failures.iter().try_for_each(output::json);
        }
        Ok(output::table(&COLUMNS, &failures.iter().map(row).collect::<Vec<_>>())?)
    }
}

fn row(failure: &OutboxFailure) -> Vec<String> {
    vec![
        failure.id.to_string(),
        failure.connection.clone(),
        output::plain(&failure.channel_key),
        failure.method.clone(),
        failure.attempts.to_string(),
        failure.at.clone(),
        output::plain(&failure.error),
    ]
}

impl Act {
    /// The store and what is selected, if that is something and confirmed.
    async fn confirmed(
        &self,
        what: &str,
        yes: bool,
    ) -> anyhow::Result<(Store, OutboxFailureFilter)> {
        ensure!(self.all || !self.ids.is_empty(), "name failures by their ids, or say --all");
        let store = self.store.open()?;
        let filter = OutboxFailureFilter {
            ids: (!self.all).then(|| self.ids.clone()),
            connection: self.connection,
            error: self.error.clone(),
        };
        let count = store.count_outbox_failures(&filter).await?;
        if count == 0 {
            return nothing_matched("there are no such failures");
        }
        ensure!(yes, "would {what}: {count} messages; pass --yes to do it");
        Ok((store, filter))
    }

    fn done(&self, word: &str, count: usize) -> anyhow::Result<()> {
        if count == 0 {
            return nothing_matched(format!("nothing was {word}: others did meanwhile"));
        }
        if self.json {
            let line = serde_json::Map::from_iter([(word.to_owned(), count.into())]);
            return output::json(&line);
        }
        output::line(&format!("{word}: {count}"))?;
        let missing = self.ids.len().saturating_sub(count);
        ensure!(self.all || missing == 0, "there are no failures of {missing} of the ids");
        Ok(())
    }
}
