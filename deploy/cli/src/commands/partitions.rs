//! `tidegate partitions`: lists partitions with their owners, cursors and lag.
//!
//! `lag` is the number of stored webhooks past the cursor. `deliveries` is the number of waiting
//! and running deliveries.

use crate::{
    output,
    settings::{NatsSettings, StoreSettings},
    stream_reader,
};
use serde::Serialize;
use shared::{store::PartitionState, stream::Partition};

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
    /// Print JSON, one partition per line.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    nats: NatsSettings,
}

/// State and lag of a partition.
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
        output::print_list(&lines, self.json, &COLUMNS, Line::row)?;
        if !self.json {
            output::print_line(&summary(&lines))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_partitions() {
        let state = PartitionState {
            partition: 0,
            owner: Some("worker-1".into()),
            epoch: 12,
            held: true,
            lease_ms: 2_730,
            generation: 1,
            cursor: 104_233,
            messages: 90_112,
            read_through: None,
            deliveries: 3,
        };
        let free = PartitionState { partition: 1, owner: None, held: false, ..state.clone() };
        let lines = [Line { state, lag: 0 }, Line { state: free, lag: 1_200 }];
        let table = output::render_table(&COLUMNS, &lines, Line::row);
        insta::assert_snapshot!(format!("{table}\n{}", summary(&lines)), @r"
        partition  owner     epoch  lease  ms left  generation  cursor   lag  deliveries
                0  worker-1     12  held      2730           1  104233     0           3
                1  -            12  free      2730           1  104233  1200           3
        2 partitions: 1 held, 1 free; lag 1200; deliveries 6
        ");
    }
}
