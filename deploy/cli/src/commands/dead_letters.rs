//! `tidegate dead-letters`: webhooks and deliveries that were given up on, why, and what is to become of them.
//!
//! A redriven delivery waits at the end of its conversation; a webhook that was never decided is decided again by the worker
//! that owns its partition. `redrive` waits for that.

use crate::{
    output::{self, nothing_matched},
    settings::StoreSettings,
};
use anyhow::{bail, ensure};
use serde::Serialize;
use shared::{
    config,
    store::{DeadLetter, DeadLetterFilter, Store},
    types::ConnectionId,
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// Time between two looks at the progress of a redrive.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Dead letters that one statement acts on.
const STEP: i64 = 1_000;
/// Ids that a message names.
const NAMED_MAX: usize = 20;

const COLUMNS: [output::Column; 7] = [
    ("id", true),
    ("stage", false),
    ("sequence", true),
    ("connection", false),
    ("attempts", true),
    ("given up at", false),
    ("reason", false),
];

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum DeadLetters {
    /// List dead letters, the newest first.
    List(List),
    /// Show a dead letter; its body only when asked for.
    Show(Show),
    /// Process dead letters again, behind what their conversations got meanwhile. Waits for webhooks that are decided again.
    Redrive(Redrive),
    /// Delete dead letters for good.
    Delete(Delete),
}

/// Settings of `tidegate dead-letters list`.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    store: StoreSettings,
    /// Only those of this connection.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// Only those whose reason or last error contains this text.
    #[arg(long)]
    reason: Option<String>,
    /// How many at most.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

/// Settings of `tidegate dead-letters show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    #[command(flatten)]
    store: StoreSettings,
    /// Its id.
    id: i64,
    /// Print the body, too: text of people.
    #[arg(long)]
    body: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Selects dead letters.
#[derive(Debug, clap::Args)]
pub struct Selection {
    /// These, by their ids.
    #[arg(conflicts_with = "all")]
    ids: Vec<i64>,
    /// All of them.
    #[arg(long)]
    all: bool,
    /// Of all, those of this connection.
    #[arg(long, requires = "all")]
    connection: Option<ConnectionId>,
    /// Of all, those whose reason or last error contains this text.
    #[arg(long, requires = "all")]
    reason: Option<String>,
}

/// Settings of `tidegate dead-letters delete`.
#[derive(Debug, clap::Args)]
pub struct Delete {
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    selection: Selection,
    /// Delete them; without this they are only counted.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Settings of `tidegate dead-letters redrive`.
#[derive(Debug, clap::Args)]
pub struct Redrive {
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    selection: Selection,
    /// Redrive all that match; without this they are only counted. Not needed for ids.
    #[arg(long)]
    yes: bool,
    /// How long to wait for the workers.
    #[arg(long, default_value = "60s", value_parser = config::duration)]
    timeout: Duration,
    /// Print JSON: how many were redriven, and those that were not.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Redriven {
    redriven: usize,
    failed: Vec<i64>,
    waiting: Vec<i64>,
}

impl DeadLetters {
    /// Runs the verb.
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
        let filter =
            DeadLetterFilter { ids: None, connection: self.connection, reason: self.reason };
        let letters = store.dead_letters(&filter, i64::from(self.limit), self.json).await?;
        if letters.is_empty() {
            return nothing_matched("there are no such dead letters");
        }
        if self.json {
            return letters.iter().try_for_each(output::json);
        }
        Ok(output::table(&COLUMNS, &letters.iter().map(row).collect::<Vec<_>>())?)
    }
}

fn row(letter: &DeadLetter) -> Vec<String> {
    let error = if letter.last_error.is_empty() { "" } else { ": " };
    vec![
        letter.id.to_string(),
        letter.stage.clone(),
        letter.sequence.to_string(),
        output::or_dash(letter.connection.as_deref()),
        letter.attempts.to_string(),
        output::or_dash(letter.at.as_deref()),
        output::plain(&format!("{}{error}{}", letter.reason, letter.last_error)),
    ]
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    letter: &'a DeadLetter,
    /// As text; what is no UTF-8 in it is replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

impl Show {
    async fn run(self) -> anyhow::Result<()> {
        let filter = DeadLetterFilter { ids: Some(vec![self.id]), ..DeadLetterFilter::default() };
        let found = self.store.open()?.dead_letters(&filter, 1, true).await?;
        let Some(letter) = found.first() else { return nothing_matched(unknown(&[self.id])) };
        let body = self.body.then(|| String::from_utf8_lossy(&letter.body).into_owned());
        if self.json {
            return output::json(&Shown { letter, body });
        }
        let text = |text: &Option<String>| output::or_dash(text.as_deref());
        output::facts(&[
            ("id", letter.id.to_string()),
            ("stage", letter.stage.clone()),
            ("reason", output::plain(&letter.reason)),
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
            ("subject", output::plain(&letter.subject)),
            ("dedup key", text(&letter.dedup_key)),
            (
                "bytes",
                match &letter.unreadable {
                    Some(why) => format!("failed to open: {}", output::plain(why)),
                    None if letter.headers.is_empty() => "in the stream alone".into(),
                    None => letter.body.len().to_string(),
                },
            ),
        ])?;
        for (name, value) in &letter.headers {
            output::facts(&[("header", output::plain(&format!("{name}: {value}")))])?;
        }
        match body {
            Some(body) => Ok(output::line(&format!("\n{}", output::plain(&body)))?),
            None => Ok(()),
        }
    }
}

impl Selection {
    fn filter(&self) -> DeadLetterFilter {
        let ids = (!self.all).then(|| self.ids.clone());
        DeadLetterFilter { ids, connection: self.connection, reason: self.reason.clone() }
    }

    /// The ids that were named and are not among these.
    fn without(&self, there: &BTreeSet<i64>) -> Vec<i64> {
        self.ids.iter().copied().filter(|id| !there.contains(id)).collect()
    }

    /// Counts what is selected. Nothing, and anything without `yes`, ends the verb.
    async fn confirm(&self, store: &Store, yes: bool, what: &str) -> anyhow::Result<()> {
        ensure!(self.all || !self.ids.is_empty(), "name dead letters by their ids, or say --all");
        let count = store.count_dead_letters(&self.filter()).await?;
        if count == 0 {
            return match self.ids.is_empty() {
                true => nothing_matched("there are no such dead letters"),
                false => nothing_matched(unknown(&self.ids)),
            };
        }
        ensure!(yes, "would {what}: {count} dead letters; pass --yes to do it");
        Ok(())
    }
}

impl Redrive {
    async fn run(self) -> anyhow::Result<()> {
        let (store, deadline) = (self.store.open()?, Instant::now() + self.timeout);
        self.selection.confirm(&store, self.yes || !self.selection.all, "redrive").await?;
        let (filter, mut asked) = (self.selection.filter(), Vec::new());
        loop {
            let ids = store.redrive_dead_letters(&filter, STEP).await?;
            let is_last = ids.is_empty();
            asked.extend(ids);
            if is_last {
                break;
            }
        }
        let left_out = self.selection.without(&asked.iter().copied().collect());
        if asked.is_empty() {
            return nothing_matched("they are being redriven already, or have no bytes");
        }
        let redriven = loop {
            let redriven = look(&store, &asked).await?;
            if redriven.waiting.is_empty() || Instant::now() >= deadline {
                break redriven;
            }
            let done = asked.len() - redriven.waiting.len();
            output::progress(&format!("{done} of {} redriven", asked.len()));
            tokio::time::sleep(POLL_INTERVAL).await;
        };
        output::progress_over();
        if self.json {
            output::json(&redriven)?;
        } else {
            output::line(&format!("redriven: {}", redriven.redriven))?;
        }
        let Redriven { failed, waiting, .. } = &redriven;
        ensure!(
            waiting.is_empty(),
            "still waiting for the owners of their partitions: {}; check with tidegate partitions that workers run",
            named(waiting)
        );
        ensure!(
            failed.is_empty(),
            "failed again: {}; tidegate dead-letters show tells why",
            named(failed)
        );
        ensure!(
            left_out.is_empty(),
            "not redriven: {}; there is no such dead letter, it is being redriven, or it has no bytes",
            named(&left_out)
        );
        Ok(())
    }
}

/// The progress of a redrive. A row that is gone is redriven; one that is no longer to be redriven failed again.
async fn look(store: &Store, asked: &[i64]) -> anyhow::Result<Redriven> {
    let filter = DeadLetterFilter { ids: Some(asked.to_vec()), ..DeadLetterFilter::default() };
    let left = store.dead_letters(&filter, i64::MAX, false).await?;
    let ids = |waits: bool| {
        left.iter().filter(|l| l.redrive_at.is_some() == waits).map(|l| l.id).collect()
    };
    Ok(Redriven { redriven: asked.len() - left.len(), failed: ids(false), waiting: ids(true) })
}

impl Delete {
    async fn run(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        self.selection.confirm(&store, self.yes, "delete for good").await?;
        let (filter, mut gone) = (self.selection.filter(), BTreeSet::new());
        loop {
            let ids = store.delete_dead_letters(&filter, STEP).await?;
            if ids.is_empty() {
                break;
            }
            gone.extend(ids);
        }
        if self.json {
            output::json(&serde_json::json!({ "deleted": gone.len() }))?;
        } else {
            output::line(&format!("deleted: {}", gone.len()))?;
        }
        let left_out = self.selection.without(&gone);
        if !left_out.is_empty() {
            bail!(unknown(&left_out));
        }
        Ok(())
    }
}

fn unknown(ids: &[i64]) -> String {
    format!("there is no dead letter {}; tidegate dead-letters list shows them", named(ids))
}

fn named(ids: &[i64]) -> String {
    let mut names: Vec<String> = ids.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    if ids.len() > NAMED_MAX {
        names.push(format!("and {} more", ids.len() - NAMED_MAX));
    }
    names.join(", ")
}
