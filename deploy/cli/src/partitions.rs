//! `tidegate partitions`: who owns which partition, and how far each is.
//!
//! `newest` is the sequence of the newest message the stream holds for the partition; a partition is `behind` when that
//! lies above its saved cursor. Cursors are saved with the lease, so one may be behind for a moment with all its work done.

use crate::{StoreSettings, jetstream, print};
use anyhow::Context;
use async_nats::jetstream::stream::{LastRawMessageErrorKind, Stream};
use serde::Serialize;
use shared::{
    config::Nats,
    partition::Partition,
    store::PartitionState,
    stream::{self, STREAM},
};

const COLUMNS: [print::Column; 9] = [
    ("partition", true),
    ("owner", false),
    ("epoch", true),
    ("lease", false),
    ("ms left", true),
    ("generation", true),
    ("cursor", true),
    ("newest", true),
    ("behind", false),
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
    newest: Option<u64>,
    behind: bool,
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
            let newest = match partition {
                Some(partition) => newest(&stream, partition).await?,
                None => None,
            };
            let behind = newest.is_some_and(|newest| newest as i64 > state.cursor);
            lines.push(Line { state, newest, behind });
        }
        if self.json {
            return lines.iter().try_for_each(print::json);
        }
        let rows: Vec<_> = lines.iter().map(Line::row).collect();
        print::table(&COLUMNS, &rows)?;
        let held = states.iter().filter(|state| state.held).count();
        let behind = lines.iter().filter(|line| line.behind).count();
        let all = lines.len();
        Ok(print::line(&format!(
            "{all} partitions: {held} held, {} free, {behind} behind",
            all - held
        ))?)
    }
}

impl Line<'_> {
    fn row(&self) -> Vec<String> {
        let PartitionState { partition, owner, epoch, held, lease_ms, generation, cursor } =
            self.state;
        vec![
            partition.to_string(),
            print::or_dash(owner.as_deref()),
            epoch.to_string(),
            if *held { "held" } else { "free" }.into(),
            lease_ms.to_string(),
            generation.to_string(),
            cursor.to_string(),
            self.newest.map_or_else(|| "-".into(), |newest| newest.to_string()),
            if self.behind { "yes" } else { "no" }.into(),
        ]
    }
}

/// The sequence of the newest message of a partition.
async fn newest(stream: &Stream, partition: Partition) -> anyhow::Result<Option<u64>> {
    match stream.get_last_raw_message_by_subject(&stream::subjects_of(partition)).await {
        Ok(message) => Ok(Some(message.sequence)),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("the newest of partition {partition}")),
    }
}
