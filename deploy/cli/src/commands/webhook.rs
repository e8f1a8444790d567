//! `tidegate webhook show`: everything that is known of one webhook, wherever it is now.

use crate::{
    output::{self, nothing_matched},
    settings::StoreSettings,
};
use serde_json::Value;
use shared::{
    store::{WebhookQuery, WebhookRecord},
    types::ConnectionId,
};

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Webhook {
    /// Show everything that is known of a webhook: its decision, delivery, attempts, dead letter and messages.
    Show(Show),
}

/// Settings of `tidegate webhook show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    #[command(flatten)]
    store: StoreSettings,
    /// Slack's event id, the reference of a message about a failure, a dedup key, or <channel>/<ts>.
    webhook: String,
    /// Its connection. Finds more, and sooner where there are many.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

impl Webhook {
    /// Runs the verb.
    pub async fn run(self) -> anyhow::Result<()> {
        let Webhook::Show(show) = self;
        show.run().await
    }
}

impl Show {
    async fn run(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let query = WebhookQuery::from(self.webhook.as_str());
        let mut records = Vec::new();
        for key in store.find_webhooks(&query, self.connection).await? {
            records.extend(store.webhook(&key).await?);
        }
        if records.is_empty() {
            let hint = match self.connection {
                None => "--connection finds also those that left only their key",
                Some(_) => {
                    "one that was ignored, and not addressed to the app, leaves no row: tidegate replay decides it again"
                }
            };
            let webhook = output::plain(&self.webhook);
            return nothing_matched(format!("nothing is known of a webhook {webhook}; {hint}"));
        }
        if self.json {
            return records.iter().try_for_each(output::json);
        }
        records.iter().try_for_each(print_record)
    }
}

fn print_record(record: &WebhookRecord) -> anyhow::Result<()> {
    output::line(&output::plain(&record.dedup_key))?;
    for (name, rows) in &record.rows {
        for row in rows.as_array().into_iter().flatten() {
            output::line(&format!("  {}", name.replace('_', " ")))?;
            for (name, value) in row.as_object().into_iter().flatten() {
                if let Some(text) = text(value) {
                    output::line(&format!("    {:<18}  {}", name.replace('_', " "), text))?;
                }
            }
        }
    }
    Ok(())
}

/// A value for people; none for what is empty.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(output::plain(text)),
        other => Some(other.to_string()),
    }
}
