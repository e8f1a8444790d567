//! `tidegate partitions`: partitions with their owners, and how far each is.
//!
//! `lag` counts the webhooks that the stream holds for the partition past its cursor: those that intake has not committed.
//! `deliveries` counts what is committed and waits for agents.

use crate::{StoreSettings, jetstream, print, tail::reader};
use anyhow::Context;
use async_nats::jetstream::{
    consumer::{AckPolicy, DeliverPolicy, pull},
    stream::Stream,
};
use serde::Serialize;
use shared::{
    config::Nats,
    partition::Partition,
    store::PartitionState,
    stream::{self, STREAM},
};
use std::time::Duration;

const COLUMNS: [print::Column; 9] = [
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
    nats: Nats,
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
        let js = jetstream(&self.nats).await?;
        let stream = js.get_stream(STREAM).await.context(
            "NATS has no stream of webhooks for us: is it up, and did tidegate migrate run?",
        )?;
        let states = self.store.open()?.partition_states().await?;
        let mut lines = Vec::with_capacity(states.len());
        for state in &states {
            let number = u16::try_from(state.partition).ok();
            let partition = number.and_then(|n| Partition::try_from(n).ok());
            let lag = match partition {
                Some(partition) => {
                    stored_after(&stream, partition, state.cursor.max(0) as u64).await?
                }
                None => 0,
            };
            lines.push(Line { state, lag });
        }
        if self.json {
            return lines.iter().try_for_each(print::json);
        }
        let rows: Vec<_> = lines.iter().map(Line::row).collect();
        print::table(&COLUMNS, &rows)?;
        let held = states.iter().filter(|state| state.held).count();
        let lag: u64 = lines.iter().map(|line| line.lag).sum();
        let deliveries: i64 = states.iter().map(|state| state.deliveries).sum();
        let (all, free) = (lines.len(), lines.len() - held);
        Ok(print::line(&format!(
            "{all} partitions: {held} held, {free} free; lag {lag}; deliveries {deliveries}"
        ))?)
    }
}

impl Line<'_> {
    fn row(&self) -> Vec<String> {
        let state = self.state;
        vec![
            state.partition.to_string(),
            print::or_dash(state.owner.as_deref()),
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

/// The number of webhooks of a partition that the stream holds after a sequence: what a reader from there on would get.
pub async fn stored_after(
    stream: &Stream,
    partition: Partition,
    sequence: u64,
) -> anyhow::Result<u64> {
    let reader = stream
        .create_consumer(pull::Config {
            name: Some(reader("lag")?),
            filter_subject: stream::subjects_of(partition),
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: sequence + 1 },
            ack_policy: AckPolicy::None,
            memory_storage: true,
            num_replicas: 1,
            inactive_threshold: Duration::from_secs(5),
            ..pull::Config::default()
        })
        .await
        .with_context(|| format!("failed to create a reader of partition {partition}"))?;
    Ok(reader.cached_info().num_pending)
}
