//! `tidegate replay` and `tidegate replays`: process a range of a connection's webhooks again.
//!
//! By default a replay is a dry run: for each webhook it records the changes, messages and calls
//! that processing would cause. With `--apply` it only enqueues the deliveries, in separate lanes
//! and with separate dedup keys. A worker runs the replay under a lease, so another worker
//! continues if the first dies. The command requests the replay, waits for it and prints its
//! results. With the name of an existing replay it prints the results of that replay.

use crate::{
    output::{self, not_found},
    settings::{StoreSettings, TimeArgument},
};
use anyhow::{Context, ensure};
use shared::{
    domain::{ConnectionId, OrgId},
    operations::{OperationError, Operations, ReplayRequest},
    runtime::config,
    store::{ReplayResult, ReplayState, Store},
};
use std::time::{Duration, Instant};
use time::format_description::well_known::Rfc3339;

/// Interval at which the command reads the progress.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// Maximum results per query.
const BATCH_SIZE: i64 = 500;

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
    ("processed", true),
    ("total", true),
    ("worker", false),
];

/// Arguments of `tidegate replay`.
#[derive(Debug, clap::Args)]
pub struct Replay {
    /// Connection of the webhooks.
    #[arg(long)]
    connection: ConnectionId,
    /// Start: a duration before now, for example 1h, or a time, for example 2026-01-31T12:00:00Z.
    #[arg(long)]
    from: TimeArgument,
    /// End, in the same form. Default: now.
    #[arg(long)]
    to: Option<TimeArgument>,
    /// Enqueue the deliveries, so that agents receive these webhooks again.
    #[arg(long, conflicts_with = "dry_run")]
    apply: bool,
    /// Only print what would be done. This is the default.
    #[arg(long)]
    dry_run: bool,
    /// Name of the replay. The results of an existing replay are printed again. Default: random.
    #[arg(long)]
    name: Option<OrgId>,
    /// Maximum time to wait for workers. After that the replay is cancelled.
    #[arg(long, default_value = "1h", value_parser = config::parse_duration)]
    timeout: Duration,
    /// Print JSON, one webhook per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// Commands of `tidegate replays`.
#[derive(Debug, clap::Subcommand)]
pub enum Replays {
    /// List replays, newest first.
    List(List),
    /// Cancel a replay that is not done. Its enqueued deliveries stay.
    Cancel(Cancel),
}

/// Arguments of `tidegate replays list`.
#[derive(Debug, clap::Args)]
pub struct List {
    /// Maximum number of replays.
    #[arg(long, default_value_t = 50)]
    limit: u32,
    /// Print JSON, one replay per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// Arguments of `tidegate replays cancel`.
#[derive(Debug, clap::Args)]
pub struct Cancel {
    /// Name of the replay.
    name: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

impl Replay {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let store = self.store.open()?;
        let from = self.from.resolve(&store).await?;
        let to = match self.to {
            Some(to) => to.resolve(&store).await?,
            None => store.now().await?,
        };
        ensure!(from < to, "--from is not before --to; pass an earlier time");
        let operations = self.store.operations(&store)?;
        let (connection, apply) = (self.connection, self.apply);
        let id = self.name.as_ref().map(ToString::to_string);
        let request = ReplayRequest { id, connection, from, to, apply };
        let (id, is_new) = operations.create_replay(&request).await?;
        if !is_new {
            let existing = state(&store, &id).await?;
            ensure!(
                existing.apply == apply && existing.connection == connection,
                "replay {id} exists, for connection {} in mode {}; pass another --name",
                existing.connection,
                mode(existing.apply)
            );
            output::print_note(&format!("replay {id} exists; printing its results"));
        }
        let ended = tokio::select! {
            ended = self.watch(&store, &operations, &id) => ended?,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                operations.cancel_replay(&id).await.or_else(ignore_ended)?;
                output::clear_progress();
                anyhow::bail!("replay {id} cancelled; its enqueued deliveries stay");
            }
        };
        output::clear_progress();
        let webhooks = self.print(&store, &id).await?;
        ensure!(
            ended.state == "done",
            "replay {id} is {}: {}",
            ended.state,
            output::or_dash(Some(&ended.note))
        );
        if webhooks == 0 {
            return not_found(
                "no webhooks of this connection found in the stream between --from and --to",
            );
        }
        Ok(())
    }

    /// Waits until the replay ends, and prints its progress. Cancels the replay after the timeout.
    async fn watch(
        &self,
        store: &Store,
        operations: &Operations,
        id: &str,
    ) -> anyhow::Result<ReplayState> {
        let deadline = Instant::now() + self.timeout;
        loop {
            let state = state(store, id).await?;
            if state.state != "open" {
                return Ok(state);
            }
            if Instant::now() >= deadline {
                operations.cancel_replay(id).await.or_else(ignore_ended)?;
                anyhow::bail!(
                    "replay {id} not done within {}, and cancelled; \
                     check with tidegate partitions that workers run",
                    humantime::format_duration(self.timeout)
                );
            }
            let of = state.total.map_or_else(String::new, |total| format!(" of about {total}"));
            let by = state.worker.as_deref().unwrap_or("no worker yet");
            output::print_progress(&format!(
                "{}{of} webhooks processed, by {}",
                state.decided,
                output::sanitize(by)
            ));
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    /// Prints the results. Returns their number.
    async fn print(&self, store: &Store, id: &str) -> anyhow::Result<usize> {
        let (mut after, mut results) = (0, Vec::new());
        loop {
            let batch = store.replay_results(id, after, BATCH_SIZE).await?;
            let Some(last) = batch.last() else { break };
            after = last.sequence;
            results.extend(batch);
        }
        if self.json || !results.is_empty() {
            output::print_list(&results, self.json, &COLUMNS, row)?;
        }
        if !self.json && !results.is_empty() {
            let done = if self.apply {
                "processed; their deliveries are enqueued"
            } else {
                "processed, and nothing changed; --apply enqueues their deliveries"
            };
            output::print_line(&format!("{} webhooks {done}", results.len()))?;
        }
        Ok(results.len())
    }
}

/// Ignores the error of cancelling a replay that has already ended.
fn ignore_ended(error: OperationError) -> Result<(), OperationError> {
    if matches!(error, OperationError::NotFound(_)) { Ok(()) } else { Err(error) }
}

async fn state(store: &Store, id: &str) -> anyhow::Result<ReplayState> {
    let found = store.replays(Some(id), 1).await?.pop();
    found.with_context(|| format!("replay {id} not found"))
}

fn mode(apply: bool) -> &'static str {
    if apply { "apply" } else { "dry" }
}

fn row(result: &ReplayResult) -> Vec<String> {
    vec![
        result.sequence.to_string(),
        result.stored_at.format(&Rfc3339).unwrap_or_else(|_| "-".into()),
        output::sanitize(&result.kind),
        output::sanitize(&result.outcome),
        output::or_dash(Some(&result.effects.join(", "))),
    ]
}

impl Replays {
    /// Runs the command.
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
            return not_found("no replays found");
        }
        output::print_list(&replays, self.json, &LIST_COLUMNS, list_row)
    }
}

fn list_row(replay: &ReplayState) -> Vec<String> {
    vec![
        output::sanitize(&replay.id),
        replay.connection.to_string(),
        mode(replay.apply).into(),
        replay.state.clone(),
        replay.decided.to_string(),
        replay.total.map_or_else(|| "-".into(), |total| total.to_string()),
        output::or_dash(replay.worker.as_deref()),
    ]
}

impl Cancel {
    async fn run(self) -> anyhow::Result<()> {
        let name = output::sanitize(&self.name);
        let operations = self.store.operations(&self.store.open()?)?;
        match operations.cancel_replay(&self.name).await {
            Err(OperationError::NotFound(_)) => {
                return not_found(format!(
                    "no open replay {name} found; list them with tidegate replays list"
                ));
            }
            cancelled => cancelled?,
        }
        if self.json {
            return output::print_json(&serde_json::json!({ "cancelled": self.name }));
        }
        Ok(output::print_line(&format!("replay {name} cancelled"))?)
    }
}
