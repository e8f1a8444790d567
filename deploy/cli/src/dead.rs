//! `tidegate dead`: webhooks that were given up on, and why.

use crate::StoreSettings;

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Dead {
    /// The newest first.
    List(List),
}

/// Settings of `tidegate dead list`.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    store: StoreSettings,
    /// How many at most.
    #[arg(long, default_value_t = 50)]
    limit: i64,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

impl Dead {
    /// Runs the verb.
    pub async fn run(self) -> anyhow::Result<()> {
        let Dead::List(list) = self;
        let dead = list.store.open()?.dead(list.limit).await?;
        if list.json {
            for one in &dead {
                println!("{}", serde_json::to_string(one)?);
            }
            return Ok(());
        }
        println!("{:>6}  {:>10}  {:<32}  {:>5}  reason", "id", "sequence", "connection", "tries");
        for one in &dead {
            let connection = one.connection.as_deref().unwrap_or("-");
            let error = if one.last_error.is_empty() {
                String::new()
            } else {
                format!(": {}", one.last_error)
            };
            println!(
                "{:>6}  {:>10}  {connection:<32}  {:>5}  {}{error}",
                one.id, one.sequence, one.attempts, one.reason
            );
        }
        Ok(())
    }
}
