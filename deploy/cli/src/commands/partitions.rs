//! `tidegate partitions`: partitions with their owners, and how far each is.
//!
//! `lag` counts the webhooks that the stream holds for the partition past its cursor: those that intake has not committed.
//! `deliveries` counts what is committed and waits for agents.

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

/// Settings of `tidegate partitions`.
#[derive(Debug, clap::Args)]
pub struct Partitions {
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    nats: NatsSettings,
    /// Print JSON, a line each.
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(flatten)]
    state: &'a PartitionState,
    lag: u64,
}

impl Partitions {
    /// Runs it.
    pub async fn run(self) -> anyhow::Result<()> {
        let js = self.nats.jetstream().await?;
        let stream = stream_reader::open(&js).await?;
        let states = self.store.open()?.partition_states().await?;
        let mut lines = Vec::with_capacity(states.len());
        for state in &states {
            let number = u16::try_from(state.partition).ok();
            let partition = number.and_then(|n| Partition::try_from(n).ok());
            let lag = match partition {
                Some(partition) => {
                    stream_reader::count_after(&stream, partition, state.cursor.max(0) as u64)
                        .await?
                }
                None => 0,
            };
            lines.push(Line { state, lag });
        }
        if self.json {
            return lines.iter().try_for_each(output::json);
        }
        let rows: Vec<_> = lines.iter().map(Line::row).collect();
        output::table(&COLUMNS, &rows)?;
        let held = states.iter().filter(|state| state.held).count();
        let lag: u64 = lines.iter().map(|line| line.lag).sum();
        let deliveries: i64 = states.iter().map(|state| state.deliveries).sum();
        let (all, free) = (lines.len(), lines.len() - held);
        Ok(output::line(&format!(
            "{all} partitions: {held} held, {free} free; lag {lag}; deliveries {deliveries}"
        ))?)
    }
}

impl Line<'_> {
    fn row(&self) -> Vec<String> {
        let state = self.state;
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
