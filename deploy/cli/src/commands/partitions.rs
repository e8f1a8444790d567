//! `tidegate partitions`: lists partitions with their owners, cursors and lag.
//!
//! `lag` is the number of stored webhooks past the cursor. `deliveries` is the number of deliveries
//! that wait or run.

use crate::{
    output,
    settings::{NatsSettings, StoreSettings},
    stream_reader,
};
use serde::Serialize;
use shared::{partition::Partition, store::PartitionState};

const COLUMNS: [output::Column; 9] = [
    ("partition", true),
    ("owner", false),
    ("epoch", true),
    ("lease", false),
    ("ms left", true),
    ("generation", true),
    ("cursor", true),
    ("lag", true),
    ("deliveries", true),
];

/// Arguments of `tidegate partitions`.
#[derive(Debug, clap::Args)]
pub struct Partitions {
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    nats: NatsSettings,
    /// Print JSON, one partition per line.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    state: PartitionState,
    lag: u64,
}

impl Partitions {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let js = self.nats.jetstream().await?;
        let stream = stream_reader::open(&js).await?;
        let mut lines = Vec::new();
        for state in self.store.open()?.partition_states().await? {
            let partition = u16::try_from(state.partition).ok();
            let lag = match partition.and_then(|number| Partition::try_from(number).ok()) {
                Some(partition) => {
                    let cursor = state.cursor.max(0) as u64;
                    stream_reader::count_after(&stream, partition, cursor).await?
                }
                None => 0,
            };
            lines.push(Line { state, lag });
        }
        output::list(&lines, self.json, &COLUMNS, Line::row)?;
        if !self.json {
            output::line(&summary(&lines))?;
        }
        Ok(())
    }
}

fn summary(lines: &[Line]) -> String {
    let held = lines.iter().filter(|line| line.state.held).count();
    let lag: u64 = lines.iter().map(|line| line.lag).sum();
    let deliveries: i64 = lines.iter().map(|line| line.state.deliveries).sum();
    let (all, free) = (lines.len(), lines.len() - held);
    format!("{all} partitions: {held} held, {free} free; lag {lag}; deliveries {deliveries}")
}

impl Line {
    fn row(&self) -> Vec<String> {
        let state = &self.state;
        vec![
            state.partition.to_string(),
            output::or_dash(state.owner.as_deref()),
            state.epoch.to_string(),
            if state.held { "held" } else { "free" }.into(),
            state.lease_ms.to_string(),
            state.generation.to_string(),
            state.cursor.to_string(),
            self.lag.to_string(),
            state.deliveries.to_string(),
        ]
    }
}
