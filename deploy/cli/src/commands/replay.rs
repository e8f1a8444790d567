//! `tidegate replay`: a range of a connection's webhooks, decided again by the workers.
//!
//! Dry by default: per webhook it shows what would be changed, sent and called. With `--apply` the deliveries among that are
//! enqueued, in lanes and under dedup keys of their own, and nothing else is done. A replay is leased, so it goes on when a
//! worker dies; the verb asks for it, watches it and prints its results. Asked again under the same name it shows that one.

use crate::{
    output::{self, nothing_matched},
    settings::StoreSettings,
};
use anyhow::{Context, ensure};
use shared::{
    config,
    store::{NewReplay, ReplayResult, ReplayState, Store},
    types::{ConnectionId, OrgId},
};
use std::time::{Duration, Instant};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Time between two looks at its progress.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Results fetched at once.
const BATCH: i64 = 500;

const COLUMNS: [output::Column; 5] = [
    ("sequence", true),
    ("stored at", false),
    ("kind", false),
    ("outcome", false),
    ("effects", false),
];

const LIST_COLUMNS: [output::Column; 7] = [
    ("name", false),
    ("connection", false),
    ("mode", false),
    ("state", false),
    ("decided", true),
    ("of", true),
    ("worker", false),
];

/// Settings of `tidegate replay`.
#[derive(Debug, clap::Args)]
pub struct Replay {
    #[command(flatten)]
    store: StoreSettings,
    /// The connection whose webhooks are decided again.
    #[arg(long)]
    connection: ConnectionId,
    /// Start: so long ago, as in 1h, or a time, as in 2026-01-31T12:00:00Z.
    #[arg(long, value_parser = since)]
    from: OffsetDateTime,
    /// End, likewise; now, if unset.
    #[arg(long, value_parser = since)]
    to: Option<OffsetDateTime>,
    /// Enqueue the deliveries: agents get these webhooks once more. Nothing else is done again.
    #[arg(long, conflicts_with = "dry_run")]
    apply: bool,
    /// Change nothing and call nothing; show what would be. The default.
    #[arg(long)]
    dry_run: bool,
    /// A name for it; made up when unset. One name is one replay.
    #[arg(long)]
    name: Option<OrgId>,
    /// How long to wait for the workers before it is cancelled.
    #[arg(long, default_value = "1h", value_parser = config::duration)]
    timeout: Duration,
    /// Print JSON, a line a webhook.
    #[arg(long)]
    json: bool,
}

/// The verbs of `tidegate replays`.
#[derive(Debug, clap::Subcommand)]
pub enum Replays {
    /// List replays, the newest first.
    List(List),
    /// Cancel a replay that is not done. Deliveries that it enqueued stay.
    Cancel(Cancel),
}

/// Settings of `tidegate replays list`.
#[derive(Debug, clap::Args)]
pub struct List {
    #[command(flatten)]
    store: StoreSettings,
    /// How many at most.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

/// Settings of `tidegate replays cancel`.
#[derive(Debug, clap::Args)]
pub struct Cancel {
    #[command(flatten)]
    store: StoreSettings,
    /// Its name.
    name: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Replay {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let to = self.to.unwrap_or_else(OffsetDateTime::now_utc);
        ensure!(self.from < to, "--from lies after --to: there is nothing between");
        let store = self.store.open()?;
        let id = match &self.name {
            Some(name) => name.to_string(),
            None => ConnectionId::random()?.to_string(),
        };
        let (connection, from, apply) = (self.connection, self.from, self.apply);
        if !store.create_replay(&NewReplay { id: id.clone(), connection, from, to, apply }).await? {
            let there = state(&store, &id).await?;
            ensure!(
                there.apply == apply && there.connection == connection,
                "there is a replay {id} of connection {} already, {}; choose another --name",
                there.connection,
                mode(there.apply)
            );
            eprintln!("there is a replay {id} already; these are its results");
        }
        let ended = tokio::select! {
            ended = self.watch(&store, &id) => ended?,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                store.cancel_replay(&id).await?;
                output::progress_over();
                anyhow::bail!("replay {id} is cancelled; what it enqueued stays");
            }
        };
        output::progress_over();
        let webhooks = self.print(&store, &id).await?;
        ensure!(
            ended.state == "done",
            "replay {id} is {}: {}",
            ended.state,
            output::or_dash(Some(&ended.note))
        );
        if webhooks == 0 {
            return nothing_matched(
                "the stream holds no webhooks of this connection in this range",
            );
        }
        Ok(())
    }

    async fn watch(&self, store: &Store, id: &str) -> anyhow::Result<ReplayState> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let state = state(store, id).await?;
            if state.state != "open" {
                return Ok(state);
            }
            if Instant::now() >= deadline {
                store.cancel_replay(id).await?;
                anyhow::bail!(
                    "replay {id} was not done within {}, and is cancelled; check with tidegate partitions that workers run",
                    humantime::format_duration(self.timeout)
                );
            }
            let of = state.total.map_or_else(String::new, |total| format!(" of about {total}"));
            let by = state.worker.as_deref().unwrap_or("no worker yet");
            output::progress(&format!("{}{of} decided, by {}", state.decided, output::plain(by)));
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Prints the results; returns their number.
    async fn print(&self, store: &Store, id: &str) -> anyhow::Result<usize> {
        let (mut after, mut count, mut rows) = (0, 0, Vec::new());
        loop {
            let some = store.replay_results(id, after, BATCH).await?;
            let Some(last) = some.last() else { break };
            after = last.sequence;
            count += some.len();
            match self.json {
                true => some.iter().try_for_each(output::json)?,
                false => rows.extend(some.iter().map(row)),
            }
        }
        if !self.json && count > 0 {
            output::table(&COLUMNS, &rows)?;
            let done = match self.apply {
                true => "decided; their deliveries are enqueued",
                false => "decided, and nothing was done; --apply enqueues their deliveries",
            };
            output::line(&format!("{count} {done}"))?;
        }
        Ok(count)
    }
}

async fn state(store: &Store, id: &str) -> anyhow::Result<ReplayState> {
    let found = store.replays(Some(id), 1).await?.pop();
    found.with_context(|| format!("replay {id} was deleted"))
}

fn mode(apply: bool) -> &'static str {
    if apply { "apply" } else { "dry" }
}

fn row(result: &ReplayResult) -> Vec<String> {
    vec![
        result.sequence.to_string(),
        result.stored_at.format(&Rfc3339).unwrap_or_else(|_| "-".into()),
        output::plain(&result.kind),
        output::plain(&result.outcome),
        output::or_dash(Some(&result.effects.join(", "))),
    ]
}

impl Replays {
    /// Runs the verb.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Replays::List(list) => list.run().await,
            Replays::Cancel(cancel) => cancel.run().await,
        }
    }
}

impl List {
    async fn run(self) -> anyhow::Result<()> {
        let replays = self.store.open()?.replays(None, i64::from(self.limit)).await?;
        if replays.is_empty() {
            return nothing_matched("there are no replays");
        }
        if self.json {
            return replays.iter().try_for_each(output::json);
        }
        let rows: Vec<_> = replays
            .iter()
            .map(|replay| {
                vec![
                    output::plain(&replay.id),
                    replay.connection.to_string(),
                    mode(replay.apply).into(),
                    replay.state.clone(),
                    replay.decided.to_string(),
                    replay.total.map_or_else(|| "-".into(), |total| total.to_string()),
                    output::or_dash(replay.worker.as_deref()),
                ]
            })
            .collect();
        Ok(output::table(&LIST_COLUMNS, &rows)?)
    }
}

impl Cancel {
    async fn run(self) -> anyhow::Result<()> {
        let name = output::plain(&self.name);
        if !self.store.open()?.cancel_replay(&self.name).await? {
            return nothing_matched(format!("there is no open replay {name}"));
        }
        if self.json {
            return output::json(&serde_json::json!({ "cancelled": self.name }));
        }
        Ok(output::line(&format!("replay {name} is cancelled"))?)
    }
}

/// A time, or a duration before now.
fn since(text: &str) -> Result<OffsetDateTime, String> {
    if let Ok(time) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(time);
    }
    let back = humantime::parse_duration(text).ok();
    let back = back.and_then(|back| time::Duration::try_from(back).ok());
    back.and_then(|back| OffsetDateTime::now_utc().checked_sub(back))
        .ok_or_else(|| "say how long ago, as in 1h, or a time, as in 2026-01-31T12:00:00Z".into())
}
