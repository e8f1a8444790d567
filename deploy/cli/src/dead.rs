//! `tidegate dead`: webhooks that were given up on, why, and what is to become of them.

use crate::{StoreSettings, print};
use anyhow::{Context, bail, ensure};
use serde::Serialize;
use shared::{
    config,
    store::{DeadChoice, DeadWebhook, Store},
    types::ConnectionId,
};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// Between two looks at how a redrive goes.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// So many ids are named in a message.
const NAMED_MAX: usize = 20;

const COLUMNS: [print::Column; 6] = [
    ("id", true),
    ("sequence", true),
    ("connection", false),
    ("tries", true),
    ("given up at", false),
    ("reason", false),
];

/// The verbs.
#[derive(Debug, clap::Subcommand)]
pub enum Dead {
    /// The newest first.
    List(List),
    /// All about one of them; its body only when asked for.
    Show(Show),
    /// Give them one more try, past their conversation's order; waits until each had it.
    Redrive(Redrive),
    /// Delete them for good. Nothing revives them.
    Discard(Discard),
}

/// Settings of `tidegate dead list`.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    store: StoreSettings,
    /// Only those of this connection.
    #[arg(long)]
    connection: Option<ConnectionId>,
    /// How many at most.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

/// Settings of `tidegate dead show`.
#[derive(Debug, clap::Args)]
pub struct Show {
    #[command(flatten)]
    store: StoreSettings,
    /// Which.
    id: i64,
    /// Print the body, too: users' words.
    #[arg(long)]
    body: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Which of the dead are meant.
#[derive(Debug, clap::Args)]
pub struct Which {
    /// These, by their ids.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    ids: Vec<i64>,
    /// All of them.
    #[arg(long)]
    all: bool,
    /// Of all, those of this connection.
    #[arg(long, requires = "all")]
    connection: Option<ConnectionId>,
    /// Of all, those whose reason holds this text.
    #[arg(long, requires = "all")]
    reason: Option<String>,
}

/// Settings of `tidegate dead discard`.
#[derive(Debug, clap::Args)]
pub struct Discard {
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    which: Which,
    /// Do it; without this it is only said how many there are.
    #[arg(long)]
    yes: bool,
}

/// Settings of `tidegate dead redrive`.
#[derive(Debug, clap::Args)]
pub struct Redrive {
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    which: Which,
    /// How long to wait for the workers.
    #[arg(long, default_value = "60s", value_parser = config::duration)]
    within: Duration,
    /// Print JSON: how many are done, and those that are not.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Redriven {
    done: usize,
    dead_again: Vec<i64>,
    waiting: Vec<i64>,
}

impl Dead {
    /// Runs the verb.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Dead::List(list) => list.run().await,
            Dead::Show(show) => show.run().await,
            Dead::Redrive(redrive) => redrive.run().await,
            Dead::Discard(discard) => discard.run().await,
        }
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let choice = DeadChoice { connection: self.connection, ..DeadChoice::default() };
        let dead = self.store.open()?.dead_among(&choice, i64::from(self.limit)).await?;
        if self.json {
            return dead.iter().try_for_each(print::json);
        }
        let rows: Vec<_> = dead.iter().map(row).collect();
        Ok(print::table(&COLUMNS, &rows)?)
    }
}

fn row(one: &DeadWebhook) -> Vec<String> {
    let error = if one.last_error.is_empty() { "" } else { ": " };
    vec![
        one.id.to_string(),
        one.sequence.to_string(),
        print::or_dash(one.connection.as_deref()),
        one.attempts.to_string(),
        print::or_dash(one.at.as_deref()),
        print::plain(&format!("{}{error}{}", one.reason, one.last_error)),
    ]
}

#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    dead: &'a DeadWebhook,
    /// As text; what is no UTF-8 in it is replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
}

impl Show {
    async fn run(self) -> anyhow::Result<()> {
        let choice = DeadChoice { ids: Some(vec![self.id]), ..DeadChoice::default() };
        let found = self.store.open()?.dead_among(&choice, 1).await?;
        let dead = found.first().with_context(|| nobody(&[self.id]))?;
        let body = self.body.then(|| String::from_utf8_lossy(&dead.body).into_owned());
        if self.json {
            return print::json(&Shown { dead, body });
        }
        let facts = [
            ("id", dead.id.to_string()),
            ("reason", print::plain(&dead.reason)),
            ("last error", print::or_dash(Some(&dead.last_error))),
            ("attempts", dead.attempts.to_string()),
            ("given up at", print::or_dash(dead.at.as_deref())),
            ("connection", print::or_dash(dead.connection.as_deref())),
            ("partition", dead.partition.to_string()),
            ("sequence", dead.sequence.to_string()),
            ("subject", print::plain(&dead.subject)),
            ("dedupe key", print::or_dash(dead.dedupe.as_deref())),
            (
                "bytes",
                match &dead.unreadable {
                    Some(why) => format!("can't be opened: {why}"),
                    None => dead.body.len().to_string(),
                },
            ),
        ];
        for (name, fact) in facts {
            print::line(&format!("{name:<13}  {fact}"))?;
        }
        for (name, value) in &dead.headers {
            print::line(&format!(
                "{:<13}  {}: {}",
                "header",
                print::plain(name),
                print::plain(value)
            ))?;
        }
        match body {
            Some(body) => Ok(print::line(&format!("\n{}", print::plain(&body)))?),
            None => Ok(()),
        }
    }
}

impl Which {
    fn choice(&self) -> DeadChoice {
        let ids = (!self.all).then(|| self.ids.clone());
        DeadChoice { ids, connection: self.connection, reason: self.reason.clone() }
    }

    /// The ids that were named and are not among these.
    fn without(&self, there: &BTreeSet<i64>) -> Vec<i64> {
        self.ids.iter().copied().filter(|id| !there.contains(id)).collect()
    }
}

impl Redrive {
    async fn run(self) -> anyhow::Result<()> {
        let (store, deadline) = (self.store.open()?, Instant::now() + self.within);
        let asked = store.ask_redrive(&self.which.choice()).await?;
        let unknown = self.which.without(&asked.iter().copied().collect());
        ensure!(unknown.is_empty(), nobody(&unknown));
        let redriven = loop {
            let redriven = look(&store, &asked).await?;
            if redriven.waiting.is_empty() || Instant::now() >= deadline {
                break redriven;
            }
            print::progress(&format!(
                "{} of {} had their try",
                asked.len() - redriven.waiting.len(),
                asked.len()
            ));
            tokio::time::sleep(LOOK_EVERY).await;
        };
        print::progress_over();
        if self.json {
            print::json(&redriven)?;
        } else {
            print::line(&format!("redriven: {}", redriven.done))?;
        }
        let Redriven { dead_again, waiting, .. } = &redriven;
        ensure!(
            waiting.is_empty(),
            "still waiting for a worker, or for Slack, an agent or Postgres: {}. They are tried on; tidegate dead list shows how it went",
            named(waiting)
        );
        ensure!(
            dead_again.is_empty(),
            "tried, and dead again: {}; tidegate dead show says why",
            named(dead_again)
        );
        Ok(())
    }
}

/// How far a redrive is. One that is gone is done; one that nobody is to try any more failed.
async fn look(store: &Store, asked: &[i64]) -> anyhow::Result<Redriven> {
    let left = store.redrives(asked).await?;
    let ids = |wanted: bool| {
        left.iter().filter(|(_, waits)| *waits == wanted).map(|(id, _)| *id).collect()
    };
    Ok(Redriven { done: asked.len() - left.len(), dead_again: ids(false), waiting: ids(true) })
}

impl Discard {
    async fn run(self) -> anyhow::Result<()> {
        let (store, choice) = (self.store.open()?, self.which.choice());
        if !self.yes {
            let count = store.count_dead(&choice).await?;
            bail!("would discard, for good: {count}. Say --yes to do it");
        }
        let gone: BTreeSet<i64> = store.discard_dead(&choice).await?.into_iter().collect();
        print::line(&format!("discarded: {}", gone.len()))?;
        let unknown = self.which.without(&gone);
        ensure!(unknown.is_empty(), nobody(&unknown));
        Ok(())
    }
}

fn nobody(ids: &[i64]) -> String {
    format!("not among the dead: {}; tidegate dead list says who is", named(ids))
}

fn named(ids: &[i64]) -> String {
    let mut names: Vec<String> = ids.iter().take(NAMED_MAX).map(ToString::to_string).collect();
    if ids.len() > NAMED_MAX {
        names.push(format!("and {} more", ids.len() - NAMED_MAX));
    }
    names.join(", ")
}
