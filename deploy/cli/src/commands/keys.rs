//! `tidegate keys`: key rotation of the encrypted columns.
//!
//! A keyring is rotated online, in four steps. First every process gets `k1,k2`, so that all can
//! decrypt with the new key. Then every process gets `k2,k1`, so that the new key encrypts. Then
//! `tidegate keys rewrap` re-encrypts all values. When `tidegate keys status` shows no value with
//! the old key, every process gets `k2` alone.

use crate::{
    output,
    settings::{Keyrings, NatsSettings, StoreSettings},
};
use anyhow::ensure;
use serde::Serialize;
use shared::store::{SEALED_COLUMNS, SealedColumn, Store};

const COLUMNS: [output::Column; 4] =
    [("column", false), ("key", false), ("values", true), ("age", false)];

/// Commands of `tidegate keys`.
#[derive(Debug, clap::Subcommand)]
pub enum Keys {
    /// Count the encrypted values of each column by key.
    Status(Status),
    /// Re-encrypt all values with the newest key of their keyring. Safe while processes run, and
    /// safe to repeat.
    Rewrap(Rewrap),
}

/// Arguments of `tidegate keys status`.
#[derive(Debug, clap::Args)]
pub struct Status {
    /// Print JSON, one column and key per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    keyrings: Keyrings,
}

/// Arguments of `tidegate keys rewrap`.
#[derive(Debug, clap::Args)]
pub struct Rewrap {
    /// Print JSON, one column and key per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    keyrings: Keyrings,
    #[command(flatten)]
    nats: NatsSettings,
}

/// Number of values of a column that one key encrypts.
#[derive(Serialize)]
struct Count<'a> {
    column: &'a str,
    key: String,
    count: i64,
    newest: bool,
    /// True if the keyring lacks the key, so that these values cannot be decrypted.
    missing: bool,
}

impl Keys {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Keys::Status(status) => {
                print_status(&status.store.open_with(status.keyrings.rings())?, status.json).await
            }
            Keys::Rewrap(rewrap) => rewrap.run().await,
        }
    }
}

impl Rewrap {
    async fn run(self) -> anyhow::Result<()> {
        let store = self.store.open_with(self.keyrings.rings())?;
        let js = self.nats.jetstream().await?;
        let mut printed = Ok(());
        let step = |column: &SealedColumn, written: u64, is_last: bool| {
            let line = format!("{}: {written}", column.name);
            output::print_progress(&line);
            if is_last {
                output::clear_progress();
                if !self.json && printed.is_ok() {
                    printed = output::print_line(&line);
                }
            }
        };
        let unopened = self.store.operations(&store)?.rewrap(&js, step).await?;
        printed?;
        print_status(&store, self.json).await?;
        ensure!(
            unopened.is_empty(),
            "failed to decrypt these values; add the keys that encrypted them to the keyring:\n{}",
            unopened.join("\n")
        );
        Ok(())
    }
}

async fn print_status(store: &Store, json: bool) -> anyhow::Result<()> {
    let mut counts = Vec::new();
    for column in &SEALED_COLUMNS {
        for (key, count) in store.count_values_by_key(column).await? {
            let newest = store.is_newest(column, &key);
            let missing = !store.has_key(column, &key);
            counts.push(Count { column: column.name, key, count, newest, missing });
        }
    }
    output::print_list(&counts, json, &COLUMNS, row)
}

fn row(count: &Count) -> Vec<String> {
    let age = match count {
        Count { missing: true, .. } => "not in keyring",
        Count { newest: true, .. } => "newest",
        _ => "old",
    };
    vec![count.column.into(), output::sanitize(&count.key), count.count.to_string(), age.into()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_keys_missing_from_keyring() {
        let count = |newest, missing| Count {
            column: "connections.bot_token",
            key: "k1".into(),
            count: 2,
            newest,
            missing,
        };
        let ages = [count(true, false), count(false, false), count(false, true)]
            .map(|count| row(&count)[3].clone());
        assert_eq!(ages, ["newest", "old", "not in keyring"]);
    }
}
