//! `tidegate keys`: under which keys secrets rest, and all of them sealed anew with the newest.
//!
//! A ring is rotated online, in four steps: every process gets `k1,k2` (so that all can open what the new key seals), then
//! `k2,k1` (the first seals), then `tidegate keys rewrap`, then `k2` alone. `keys status` says when nothing is left
//! under the old key.

use crate::{
    directory::announce,
    output,
    settings::{NatsSettings, StoreSettings},
};
use anyhow::ensure;
use serde::Serialize;
use shared::store::{SEALED_COLUMNS, Store};

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Keys {
    /// Under which keys everything sealed rests.
    Status(Status),
    /// Seal everything anew with the newest key of its ring, while all goes on. Safe to run again.
    Rewrap(Rewrap),
}

/// Settings of `tidegate keys status`.
#[derive(Debug, clap::Args)]
pub struct Status {
    #[command(flatten)]
    store: StoreSettings,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

/// Settings of `tidegate keys rewrap`.
#[derive(Debug, clap::Args)]
pub struct Rewrap {
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    nats: NatsSettings,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Count<'a> {
    column: &'a str,
    key: String,
    count: i64,
    newest: bool,
}

impl Keys {
    /// Runs the verb.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Keys::Status(status) => show(&status.store.open()?, status.json).await,
            Keys::Rewrap(rewrap) => rewrap.run().await,
        }
    }
}

impl Rewrap {
    async fn run(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let js = self.nats.jetstream().await?;
        let mut unopened = Vec::new();
        for column in &SEALED_COLUMNS {
            let (mut after, mut written) = (String::new(), 0);
            loop {
                let step = store.rewrap(column, &after).await?;
                written += step.written;
                unopened.extend(step.unopened);
                output::progress(&format!("{}: {written}", column.name));
                let Some(next) = step.next else { break };
                after = next;
            }
            output::progress_over();
            if !self.json {
                output::line(&format!("{}: {written}", column.name))?;
            }
        }
        // Signing secrets lie in the directory as they lie in Postgres.
        let connections = store.connection_summaries(None).await?;
        let ids: Vec<_> = connections.iter().map(|connection| connection.id).collect();
        announce(&store, &js, &ids).await?;
        show(&store, self.json).await?;
        ensure!(
            unopened.is_empty(),
            "these could not be opened, and rest as they were; give back the key that sealed them:\n{}",
            unopened.join("\n")
        );
        Ok(())
    }
}

async fn show(store: &Store, json: bool) -> anyhow::Result<()> {
    let mut counts = Vec::new();
    for column in &SEALED_COLUMNS {
        for (key, count) in store.keys_of(column).await? {
            let newest = store.is_newest(column, &key);
            counts.push(Count { column: column.name, key, count, newest });
        }
    }
    if json {
        return counts.iter().try_for_each(output::json);
    }
    let rows: Vec<_> = counts
        .iter()
        .map(|count| {
            let age = if count.newest { "newest" } else { "old" };
            vec![
                count.column.into(),
                output::plain(&count.key),
                count.count.to_string(),
                age.into(),
            ]
        })
        .collect();
    let columns = [("sealed", false), ("key", false), ("values", true), ("", false)];
    Ok(output::table(&columns, &rows)?)
}
