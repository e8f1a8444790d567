//! `tidegate ledger verify`: checks that every webhook up to the cursors is committed.
//!
//! Compares, for each partition, the number of webhooks that intake has committed with the number
//! that the stream holds up to the cursor plus the number purged. If the second is higher, webhooks
//! are missing. If it is lower, the stream has deleted committed webhooks by age, which is no loss.

use crate::{
    output,
    settings::{NatsSettings, StoreSettings},
    stream_reader,
};
use anyhow::ensure;
use async_nats::jetstream::stream::Stream;
use serde::Serialize;
use shared::store::{LedgerEntry, Store};
use std::time::Duration;

/// Maximum number of counts of a partition with missing webhooks. A count can be wrong because its
/// consumer is on a replica that lags behind.
const MAX_COUNTS: usize = 3;
/// Interval between counts.
const COUNT_INTERVAL: Duration = Duration::from_millis(500);

const COLUMNS: [output::Column; 8] = [
    ("partition", true),
    ("generation", true),
    ("from", true),
    ("cursor", true),
    ("committed", true),
    ("in stream", true),
    ("purged", true),
    ("missing", true),
];

/// Commands of `tidegate ledger`.
#[derive(Debug, clap::Subcommand)]
pub enum Ledger {
    /// Check that every stored webhook is accounted for. Exits 1 if one is missing.
    Verify(Verify),
}

/// Arguments of `tidegate ledger verify`.
#[derive(Debug, clap::Args)]
pub struct Verify {
    /// Print JSON: one line per partition that differs, then the totals.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreSettings,
    #[command(flatten)]
    nats: NatsSettings,
}

/// Counts of a partition.
#[derive(Debug, Clone, Copy, Serialize)]
struct Line {
    partition: u16,
    generation: i32,
    from: u64,
    cursor: u64,
    committed: u64,
    /// Webhooks in the stream up to the cursor. `None` if the cursor belongs to a former stream.
    stored: Option<u64>,
    purged: u64,
    /// Webhooks in the stream up to the cursor that are not committed.
    missing: u64,
    /// Committed webhooks that the stream has deleted by age.
    expired: u64,
}

impl Line {
    fn new(entry: &LedgerEntry, stored: Option<u64>) -> Self {
        let LedgerEntry { partition, generation, from, cursor, committed, removed, .. } = *entry;
        let found = stored.map_or(committed, |stored| stored + removed);
        Self {
            partition: partition.number(),
            generation,
            from,
            cursor,
            committed,
            stored,
            purged: removed,
            missing: found.saturating_sub(committed),
            expired: committed.saturating_sub(found),
        }
    }

    fn differs(&self) -> bool {
        self.missing > 0 || self.expired > 0 || self.stored.is_none()
    }

    fn row(&self) -> Vec<String> {
        vec![
            self.partition.to_string(),
            self.generation.to_string(),
            self.from.to_string(),
            self.cursor.to_string(),
            self.committed.to_string(),
            self.stored.map_or_else(|| "former stream".into(), |stored| stored.to_string()),
            self.purged.to_string(),
            self.missing.to_string(),
        ]
    }
}

impl Ledger {
    /// Runs the command.
    pub async fn run(self) -> anyhow::Result<()> {
        let Ledger::Verify(verify) = self;
        verify.run().await
    }
}

impl Verify {
    async fn run(self) -> anyhow::Result<()> {
        let (js, store) = (self.nats.jetstream().await?, self.store.open()?);
        let stream = stream_reader::open(&js).await?;
        let mut lines = count(&store, &stream, None).await?;
        for _ in 1..MAX_COUNTS {
            if lines.iter().all(|line| line.missing == 0) {
                break;
            }
            tokio::time::sleep(COUNT_INTERVAL).await;
            lines = count(&store, &stream, Some(lines)).await?;
        }
        let missing: u64 = lines.iter().map(|line| line.missing).sum();
        self.print(&lines, missing)?;
        ensure!(
            missing == 0,
            "missing webhooks: {missing}; the stream still holds them: \
             do not delete the stream, and check the logs of the workers"
        );
        Ok(())
    }

    fn print(&self, lines: &[Line], missing: u64) -> anyhow::Result<()> {
        let differing: Vec<Line> = lines.iter().copied().filter(Line::differs).collect();
        if self.json || !differing.is_empty() {
            output::print_list(&differing, self.json, &COLUMNS, Line::row)?;
        }
        let sum = |of: fn(&Line) -> u64| lines.iter().map(of).sum::<u64>();
        let (committed, expired) = (sum(|l| l.committed), sum(|l| l.expired));
        let partitions = lines.len();
        if self.json {
            return output::print_json(&serde_json::json!({
                "partitions": partitions, "committed": committed,
                "stored": sum(|l| l.stored.unwrap_or(0)), "purged": sum(|l| l.purged),
                "expired": expired, "missing": missing,
            }));
        }
        Ok(output::print_line(&format!(
            "{partitions} partitions: {committed} committed, \
             {expired} no longer in the stream, {missing} missing"
        ))?)
    }
}

/// Counts all partitions, or only those with missing webhooks in an earlier count.
async fn count(
    store: &Store,
    stream: &Stream,
    before: Option<Vec<Line>>,
) -> anyhow::Result<Vec<Line>> {
    let created_ns = stream.cached_info().created.unix_timestamp_nanos() as i64; // until 2262
    let mut lines = Vec::new();
    // The ledger is read before the stream, so a purge in between only lowers the stream's count.
    for (n, entry) in store.ledger().await?.iter().enumerate() {
        match before.as_ref().and_then(|lines| lines.get(n)) {
            Some(line) if line.missing == 0 => lines.push(*line),
            _ => {
                let is_same = entry.stream_created_ns.is_none_or(|created| created == created_ns);
                let stored = if is_same { Some(stored(stream, entry).await?) } else { None };
                lines.push(Line::new(entry, stored));
            }
        }
        output::print_progress(&format!("partition {n}"));
    }
    output::clear_progress();
    Ok(lines)
}

/// Returns the number of webhooks in the stream from a partition's first sequence to its cursor. A
/// webhook that arrives between the two requests lowers the result.
async fn stored(stream: &Stream, entry: &LedgerEntry) -> anyhow::Result<u64> {
    if entry.cursor <= entry.from {
        return Ok(0);
    }
    let all = stream_reader::count_after(stream, entry.partition, entry.from).await?;
    let lag = stream_reader::count_after(stream, entry.partition, entry.cursor).await?;
    Ok(all.saturating_sub(lag))
}

#[cfg(test)]
mod tests {
    use super::*;
    use shared::stream::Partition;

    #[test]
    fn reports_missing_webhooks() {
        let entry = LedgerEntry {
            partition: Partition::try_from(7).expect("below 64"),
            generation: 1,
            stream_created_ns: Some(1),
            from: 0,
            cursor: 20,
            committed: 10,
            removed: 4,
        };
        for (stored, missing, expired) in
            [(Some(6), 0, 0), (Some(8), 2, 0), (Some(1), 0, 5), (None, 0, 0)]
        {
            let line = Line::new(&entry, stored);
            assert_eq!((line.missing, line.expired), (missing, expired), "{stored:?}");
            assert_eq!(line.differs(), stored != Some(6), "{stored:?}");
        }
        let lines = [Some(8), None].map(|stored| Line::new(&entry, stored));
        insta::assert_snapshot!(output::render_table(&COLUMNS, &lines, Line::row), @r"
        partition  generation  from  cursor  committed      in stream  purged  missing
                7           1     0      20         10              8       4        2
                7           1     0      20         10  former stream       4        0
        ");
    }
}
