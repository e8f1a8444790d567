//! `tidegate dead-letters`: lists, shows, redrives and deletes dead letters.
//!
//! `redrive` enqueues a delivery at the tail of its lane. A webhook that intake gave up on is
//! processed again by the worker that owns its partition, and `redrive` waits for the result.

mod redrive;

use crate::{
    output::{self, not_found},
    settings::{StoreSettings, TokenKeyring},
};
use anyhow::{bail, ensure};
use redrive::Redrive;
use serde::Serialize;
use shared::{
    domain::ConnectionId,
    store::{DeadLetter, FailureFilter, Store},
};
use std::collections::BTreeSet;

/// Maximum number of ids that a message lists.
const MAX_NAMED_IDS: usize = 20;

const COLUMNS: [output::Column; 7] = [
    ("id", true),
    ("stage", false),
    ("sequence", true),
    ("connection", false),
    ("attempts", true),
    ("given up at", false),
    ("reason", false),
];

/// Commands of `tidegate dead-letters`.
#[derive(Debug, clap::Subcommand)]
pub enum DeadLetters {
    /// List dead letters, newest first.
    List(List),
    /// Show a dead letter, without its body by default.
    Show(Show),
    /// Process dead letters again, after later deliveries of their conversations.
    ///
    /// Waits until workers have processed those of stage intake. Exits 1 if one fails again.
    Redrive(Redrive),
    /// Delete dead letters permanently.
    Delete(Delete),
}

/// Arguments of `tidegate dead-letters list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Only list dead letters of this connection.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// Only list dead letters whose reason or last error contains this text.
    #[arg(long)]
    reason: Option<String>,
    /// Maximum number of dead letters.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON, one dead letter per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// Arguments of `tidegate dead-letters show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    /// Id of the dead letter.
    id: i64,
    /// Print the body, which contains text from users.
    #[arg(long)]
    body: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    keyring: TokenKeyring,
}

/// Selection of dead letters.
#[derive(Debug, clap::Args)]
pub struct Selection {
    /// Ids of dead letters.
    #[arg(conflicts_with = "all")]
    ids: Vec<i64>,
    /// Select all dead letters.
    #[arg(long)]
    all: bool,
    /// With --all: only select dead letters of this connection.
    #[arg(long, requires = "all")]
    connection: Option<ConnectionId>,
    /// With --all: only select dead letters whose reason or last error contains this text.
    #[arg(long, requires = "all")]
    reason: Option<String>,
}

/// Arguments of `tidegate dead-letters delete`.
#[derive(Debug, clap::Args)]
pub struct Delete {
    #[command(flatten)]
    selection: Selection,
    /// Delete the selection. Without this flag only print its size.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

impl DeadLetters {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            DeadLetters::List(list) => list.run().await,
            DeadLetters::Show(show) => show.run().await,
            DeadLetters::Redrive(redrive) => redrive.run().await,
            DeadLetters::Delete(delete) => delete.run().await,
        }
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let filter = FailureFilter {
            connection: self.connection,
            text: self.reason,
            ..FailureFilter::default()
        };
        let letters = store.dead_letters(&filter, i64::from(self.limit), false).await?;
        if letters.is_empty() {
            return not_found("no dead letters found");
        }
        output::print_list(&letters, self.json, &COLUMNS, row)
    }
}

fn row(letter: &DeadLetter) -> Vec<String> {
    let separator = if letter.last_error.is_empty() { "" } else { ": " };
    vec![
        letter.id.to_string(),
        letter.stage.clone(),
        letter.sequence.to_string(),
        output::or_dash(letter.connection.as_deref()),
        letter.attempts.to_string(),
        output::or_dash(letter.at.as_deref()),
        output::sanitize(&format!("{}{separator}{}", letter.reason, letter.last_error)),
    ]
}

#[derive(Serialize)]
struct Details<'a> {
    #[serde(flatten)]
    letter: &'a DeadLetter,
    /// Body as text. Bytes that are not UTF-8 are replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

impl Show {
    async fn run(self) -> anyhow::Result<()> {
        let filter = FailureFilter { ids: Some(vec![self.id]), ..FailureFilter::default() };
        let store = self.store.open_with(self.keyring.rings())?;
        let found = store.dead_letters(&filter, 1, true).await?;
        let Some(letter) = found.first() else { return not_found(missing_message(&[self.id])) };
        let body = self.body.then(|| String::from_utf8_lossy(&letter.body).into_owned());
        if self.json {
            return output::print_json(&Details { letter, body });
        }
        output::print_line(&render(letter))?;
        match body {
            Some(body) => Ok(output::print_line(&format!("\n{}", output::sanitize(&body)))?),
            None => Ok(()),
        }
    }
}

fn render(letter: &DeadLetter) -> String {
    let text = |text: &Option<String>| output::or_dash(text.as_deref());
    let bytes = match &letter.unreadable {
        Some(reason) => format!("failed to decrypt: {}", output::sanitize(reason)),
        None if letter.headers.is_empty() => "only in the stream".into(),
        None => letter.body.len().to_string(),
    };
    let mut facts = vec![
        ("id", letter.id.to_string()),
        ("stage", letter.stage.clone()),
        ("reason", output::sanitize(&letter.reason)),
        ("last error", output::or_dash(Some(&letter.last_error))),
        ("attempts", letter.attempts.to_string()),
        ("given up at", text(&letter.at)),
        ("redrive since", text(&letter.redrive_at)),
        ("connection", text(&letter.connection)),
        ("agent", text(&letter.agent)),
        ("event id", text(&letter.event_id)),
        ("channel", text(&letter.channel)),
        ("ts", text(&letter.ts)),
        ("user", text(&letter.user)),
        ("partition", letter.partition.to_string()),
        ("generation", letter.generation.to_string()),
        ("sequence", letter.sequence.to_string()),
        ("subject", output::sanitize(&letter.subject)),
        ("dedup key", text(&letter.dedup_key)),
        ("bytes", bytes),
    ];
    for (name, value) in &letter.headers {
        facts.push(("header", output::sanitize(&format!("{name}: {value}"))));
    }
    output::render_facts(&facts)
}

impl Selection {
    fn filter(&self) -> FailureFilter {
        let ids = (!self.all).then(|| self.ids.clone());
        let (connection, text) = (self.connection, self.reason.clone());
        FailureFilter { ids, connection, text, ..FailureFilter::default() }
    }

    /// Returns the selected ids that are not in `found`.
    fn without(&self, found: &BTreeSet<i64>) -> Vec<i64> {
        self.ids.iter().copied().filter(|id| !found.contains(id)).collect()
    }

    /// Counts the selection. Returns an error if it is empty or not confirmed.
    async fn confirm(&self, store: &Store, yes: bool, operation: &str) -> anyhow::Result<()> {
        ensure!(self.all || !self.ids.is_empty(), "no dead letters selected; pass ids or --all");
        let count = store.count_dead_letters(&self.filter()).await?;
        if count == 0 && self.all {
            return not_found("no dead letters found");
        }
        if count == 0 {
            return not_found(missing_message(&self.ids));
        }
        ensure!(yes, "would {operation}: {count} dead letters; pass --yes to do it");
        Ok(())
    }
}

impl Delete {
    async fn run(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        self.selection.confirm(&store, self.yes, "delete permanently").await?;
        let operations = self.store.operations(&store)?;
        let deleted = operations.delete_dead_letters(&self.selection.filter()).await?;
        let deleted: BTreeSet<i64> = deleted.into_iter().collect();
        if self.json {
            output::print_json(&serde_json::json!({ "deleted": deleted.len() }))?;
        } else {
            output::print_line(&format!("deleted: {}", deleted.len()))?;
        }
        let left_out = self.selection.without(&deleted);
        if !left_out.is_empty() {
            bail!(missing_message(&left_out));
        }
        Ok(())
    }
}

fn missing_message(ids: &[i64]) -> String {
    format!("dead letter {} not found; list them with tidegate dead-letters list", join_ids(ids))
}

fn join_ids(ids: &[i64]) -> String {
    let mut names: Vec<String> = ids.iter().take(MAX_NAMED_IDS).map(ToString::to_string).collect();
    if ids.len() > MAX_NAMED_IDS {
        names.push(format!("and {} more", ids.len() - MAX_NAMED_IDS));
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_dead_letters() {
        let dispatch = DeadLetter {
            id: 17,
            stage: "dispatch".into(),
            sequence: 1_234,
            connection: Some(format!("{:032x}", 7)),
            agent: Some("acme/helper".into()),
            reason: "agent rejected the delivery".into(),
            last_error: "422".into(),
            attempts: 3,
            at: Some("2026-01-31T12:00:00Z".into()),
            headers: vec![("Content-Type".into(), "application/json".into())],
            body: b"{}".into(),
            ..DeadLetter::default()
        };
        let intake = DeadLetter {
            id: 8,
            stage: "intake".into(),
            reason: "undecodable envelope: no headers".into(),
            ..DeadLetter::default()
        };
        insta::assert_snapshot!(render(&dispatch), @r"
        id              17
        stage           dispatch
        reason          agent rejected the delivery
        last error      422
        attempts        3
        given up at     2026-01-31T12:00:00Z
        redrive since   -
        connection      00000000000000000000000000000007
        agent           acme/helper
        event id        -
        channel         -
        ts              -
        user            -
        partition       0
        generation      0
        sequence        1234
        subject         
        dedup key       -
        bytes           2
        header          Content-Type: application/json
        ");
        insta::assert_snapshot!(output::render_table(&COLUMNS, &[dispatch, intake], row), @r"
        id  stage     sequence  connection                        attempts  given up at           reason
        17  dispatch      1234  00000000000000000000000000000007         3  2026-01-31T12:00:00Z  agent rejected the delivery: 422
         8  intake           0  -                                        0  -                     undecodable envelope: no headers
        ");
    }

    #[test]
    fn lists_at_most_20_ids() {
        assert!(join_ids(&(1..=20).collect::<Vec<_>>()).ends_with("19, 20"));
        assert!(join_ids(&(1..=22).collect::<Vec<_>>()).ends_with("20, and 2 more"));
    }
}
