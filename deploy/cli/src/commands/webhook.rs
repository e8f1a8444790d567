//! `tidegate webhook show`: prints all rows about one webhook.

use crate::{
    output::{self, not_found},
    settings::StoreSettings,
};
use serde_json::Value;
use shared::{
    domain::ConnectionId,
    store::{WebhookQuery, WebhookRecord},
};

/// Commands of `tidegate webhook`.
#[derive(Debug, clap::Subcommand)]
pub enum Webhook {
    /// Show the routing, delivery, attempts, dead letter and messages of a webhook.
    Show(Show),
}

/// Arguments of `tidegate webhook show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// Event id, dedup key, reference in an error message, or <channel>/<ts>.
    webhook: String,
    /// Connection of the webhook. Also searches processed webhooks, and is faster.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// Print JSON, one webhook per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

impl Webhook {
    /// Runs the command.
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
            let remedy = match self.connection {
                None => "pass --connection to also search processed webhooks",
                Some(_) => "an ignored webhook has no rows; tidegate replay processes it again",
            };
            let webhook = output::sanitize(&self.webhook);
            return not_found(format!("webhook {webhook} not found; {remedy}"));
        }
        if self.json {
            return records.iter().try_for_each(output::print_json);
        }
        records.iter().try_for_each(|record| Ok(output::print_line(&render(record))?))
    }
}

fn render(record: &WebhookRecord) -> String {
    let mut lines = vec![output::sanitize(&record.dedup_key)];
    for (name, rows) in &record.rows {
        for row in rows.as_array().into_iter().flatten() {
            lines.push(format!("  {}", name.replace('_', " ")));
            for (name, value) in row.as_object().into_iter().flatten() {
                if let Some(text) = text(value) {
                    lines.push(format!("    {:<18}  {text}", name.replace('_', " ")));
                }
            }
        }
    }
    lines.join("\n")
}

/// Returns the text of a value, or `None` if it is null or empty.
fn text(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) if text.is_empty() => None,
        Value::String(text) => Some(output::sanitize(text)),
        other => Some(other.to_string()),
    }
}
