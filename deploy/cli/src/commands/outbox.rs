//! `tidegate outbox failures`: lists, retries and deletes messages that Slack rejected permanently.
//!
//! Never prints the text of a message.

use crate::{
    output::{self, not_found},
    settings::StoreSettings,
};
use anyhow::ensure;
use shared::{
    domain::ConnectionId,
    operations::Operations,
    store::{FailureFilter, OutboxFailure},
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

/// Commands of `tidegate outbox`.
#[derive(Debug, clap::Subcommand)]
pub enum Outbox {
    /// Manage messages that Slack rejected permanently.
    #[command(subcommand)]
    Failures(Failures),
}

/// Commands of `tidegate outbox failures`.
#[derive(Debug, clap::Subcommand)]
pub enum Failures {
    /// List failures, newest first.
    List(List),
    /// Send messages again, after the pending messages of their conversations.
    Retry(Change),
    /// Delete failures permanently. Their messages are never sent.
    Delete(Change),
}

/// Arguments of `tidegate outbox failures list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Only list failures of this connection.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// Only list failures whose error contains this text.
    #[arg(long)]
    error: Option<String>,
    /// Maximum number of failures.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON, one failure per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// Arguments of `tidegate outbox failures retry` and `delete`.
#[derive(Debug, clap::Args)]
pub struct Change {
    /// Ids of failures.
    #[arg(conflicts_with = "all")]
    ids: Vec<i64>,
    /// Select all failures.
    #[arg(long)]
    all: bool,
    /// With --all: only select failures of this connection.
    #[arg(long, requires = "all")]
    connection: Option<ConnectionId>,
    /// With --all: only select failures whose error contains this text.
    #[arg(long, requires = "all")]
    error: Option<String>,
    /// Confirm the change. Without this flag only print the number. Not required to retry ids.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

impl Outbox {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Outbox::Failures(Failures::List(list)) => list.run().await,
            Outbox::Failures(Failures::Retry(change)) => {
                let (operations, filter) =
                    change.confirm("retry", change.yes || !change.all).await?;
                let ids = operations.retry_outbox_failures(&filter).await?;
                change.finish("retried", ids.len())
            }
            Outbox::Failures(Failures::Delete(change)) => {
                let (operations, filter) = change.confirm("delete permanently", change.yes).await?;
                let ids = operations.delete_outbox_failures(&filter).await?;
                change.finish("deleted", ids.len())
            }
        }
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let filter = FailureFilter {
            connection: self.connection,
            text: self.error,
            ..FailureFilter::default()
        };
        let failures = self.store.open()?.outbox_failures(&filter, i64::from(self.limit)).await?;
        if failures.is_empty() {
            return not_found("no failures found");
        }
        output::print_list(&failures, self.json, &COLUMNS, row)
    }
}

fn row(failure: &OutboxFailure) -> Vec<String> {
    vec![
        failure.id.to_string(),
        failure.connection.clone(),
        output::sanitize(&failure.channel_key),
        failure.method.clone(),
        failure.attempts.to_string(),
        failure.at.clone(),
        output::sanitize(&failure.error),
    ]
}

impl Change {
    /// Returns the operations and the selection. Returns an error if the selection is empty or not
    /// confirmed.
    async fn confirm(
        &self,
        operation: &str,
        yes: bool,
    ) -> anyhow::Result<(Operations, FailureFilter)> {
        ensure!(self.all || !self.ids.is_empty(), "no failures selected; pass ids or --all");
        let store = self.store.open()?;
        let filter = FailureFilter {
            ids: (!self.all).then(|| self.ids.clone()),
            connection: self.connection,
            text: self.error.clone(),
            ..FailureFilter::default()
        };
        let count = store.count_outbox_failures(&filter).await?;
        if count == 0 {
            return not_found("no failures found; list them with tidegate outbox failures list");
        }
        ensure!(yes, "would {operation}: {count} messages; pass --yes to do it");
        Ok((self.store.operations(&store)?, filter))
    }

    /// Prints the result. Returns an error if a selected failure was not changed.
    fn finish(&self, done: &str, count: usize) -> anyhow::Result<()> {
        if count == 0 {
            return not_found(format!("nothing {done}: another process changed the failures"));
        }
        if self.json {
            let line = serde_json::Map::from_iter([(done.to_owned(), count.into())]);
            return output::print_json(&line);
        }
        output::print_line(&format!("{done}: {count}"))?;
        let missing = self.ids.len().saturating_sub(count);
        ensure!(
            self.all || missing == 0,
            "{missing} of the failures not found; list them with tidegate outbox failures list"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_failures() {
        let failure: OutboxFailure = serde_json::from_value(serde_json::json!({
            "id": 17, "connection": format!("{:032x}", 7), "lane": "00000000000000ff",
            "channel_key": "C0123456", "method": "chat.postMessage", "dedup_key": "key",
            "error": "channel_not_found", "attempts": 1, "resend_count": 0,
            "created_at": "2026-01-31T12:00:00Z", "at": "2026-01-31T12:00:01Z",
        }))
        .expect("a failure");
        insta::assert_snapshot!(output::render_table(&COLUMNS, &[failure], row), @r"
        id  connection                        channel   method            attempts  given up at           error
        17  00000000000000000000000000000007  C0123456  chat.postMessage         1  2026-01-31T12:00:01Z  channel_not_found
        ");
    }
}
