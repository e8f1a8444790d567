//! `tidegate dead-letters redrive`: processes dead letters again and waits for the result.

use super::{Selection, join_ids};
use crate::{
    output::{self, not_found},
    settings::StoreSettings,
};
use anyhow::ensure;
use serde::Serialize;
use shared::{
    runtime::config,
    store::{FailureFilter, Store},
};
use std::time::{Duration, Instant};

/// Interval at which `redrive` reads its progress.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// Arguments of `tidegate dead-letters redrive`.
#[derive(Debug, clap::Args)]
pub struct Redrive {
    #[command(flatten)]
    selection: Selection,
    /// With --all: redrive the selection. Without this flag only print its size.
    #[arg(long)]
    yes: bool,
    /// Maximum time to wait for workers.
    #[arg(long, default_value = "60s", value_parser = config::parse_duration)]
    timeout: Duration,
    /// Print JSON: the number of redriven dead letters, and the ids of failed and waiting ones.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
}

/// State of a redrive.
#[derive(Serialize)]
struct Progress {
    redriven: usize,
    failed: Vec<i64>,
    waiting: Vec<i64>,
}

impl Redrive {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let (store, deadline) = (self.store.open()?, Instant::now() + self.timeout);
        self.selection.confirm(&store, self.yes || !self.selection.all, "redrive").await?;
        let operations = self.store.operations(&store)?;
        let requested = operations.redrive_dead_letters(&self.selection.filter()).await?;
        let left_out = self.selection.without(&requested.iter().copied().collect());
        if requested.is_empty() {
            return not_found(
                "no dead letters redriven: each is already being redriven, or has no bytes",
            );
        }
        let progress = loop {
            let progress = progress(&store, &requested).await?;
            if progress.waiting.is_empty() || Instant::now() >= deadline {
                break progress;
            }
            let done = requested.len() - progress.waiting.len();
            output::print_progress(&format!("{done} of {} redriven", requested.len()));
            tokio::time::sleep(POLL_INTERVAL).await;
        };
        output::clear_progress();
        if self.json {
            output::print_json(&progress)?;
        } else {
            output::print_line(&format!("redriven: {}", progress.redriven))?;
        }
        let Progress { failed, waiting, .. } = &progress;
        ensure!(
            waiting.is_empty(),
            "not redriven within {}: {}; check with tidegate partitions that workers run",
            humantime::format_duration(self.timeout),
            join_ids(waiting)
        );
        ensure!(
            failed.is_empty(),
            "failed again: {}; tidegate dead-letters show prints the reason",
            join_ids(failed)
        );
        ensure!(
            left_out.is_empty(),
            "not redriven: {} (not found, already being redriven, or without bytes)",
            join_ids(&left_out)
        );
        Ok(())
    }
}

/// Returns the progress of a redrive. A dead letter whose row is gone has been redriven. A row
/// without a redrive time has failed again.
async fn progress(store: &Store, requested: &[i64]) -> anyhow::Result<Progress> {
    let filter = FailureFilter { ids: Some(requested.to_vec()), ..FailureFilter::default() };
    let left = store.dead_letters(&filter, i64::MAX, false).await?;
    let ids = |waits: bool| {
        left.iter().filter(|l| l.redrive_at.is_some() == waits).map(|l| l.id).collect()
    };
    Ok(Progress { redriven: requested.len() - left.len(), failed: ids(false), waiting: ids(true) })
}
