//! Counts the open deliveries, dead letters and messages of each connection for its limits, and the
//! backlog for the metrics page.
//!
//! A round walks the tables by index, a page at a time, so that no statement runs long. Its result
//! applies until the next round: a connection may exceed its limits by what arrives meanwhile.

use crate::context::Context;
use shared::{
    runtime::telemetry::ErrorChain,
    store::{
        BacklogLimits, BacklogStats, ChannelPosition, ConnectionBacklog, CountedRows,
        DeliveryPosition, EXACT_MAX, RowPosition, StoreError,
    },
};
use std::{collections::BTreeMap, time::Duration};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Maximum number of rows of a page.
const PAGE_ROWS: i64 = 20_000;
/// Pause between two pages. A million rows take 13 s and less than a tenth of a core of Postgres.
const PAGE_INTERVAL: Duration = Duration::from_millis(250);
/// Minimum interval between the starts of two rounds.
const ROUND_INTERVAL: Duration = Duration::from_secs(5);

/// Counts in rounds until cancelled.
pub async fn run(context: &Context, limits: BacklogLimits, until: CancellationToken) {
    let counting = async {
        loop {
            let began = Instant::now();
            if let Err(error) = count_round(context, &limits).await {
                warn!(error = %ErrorChain(&error), "failed to count the backlog");
            }
            tokio::time::sleep_until(began + ROUND_INTERVAL).await;
            tokio::time::sleep(PAGE_INTERVAL).await;
        }
    };
    until.run_until_cancelled(counting).await;
}

async fn count_round(context: &Context, limits: &BacklogLimits) -> Result<(), StoreError> {
    let store = &context.store;
    let mut tally = Tally::default();
    let (mut after, mut oldest) = (Some(DeliveryPosition::default()), Duration::ZERO);
    while let Some(position) = after {
        let page = store.count_delivery_page(&position, PAGE_ROWS).await?;
        tally.add(page.counts, limits, |row, counted| {
            row.deliveries += counted.rows;
            row.delivery_bytes += counted.bytes;
        });
        (after, oldest) = (page.next, oldest.max(page.oldest));
        pause_before(&after).await;
    }
    let deliveries = std::mem::take(&mut tally.total);
    let mut after = Some(RowPosition::default());
    while let Some(position) = after {
        let page = store.count_dead_letter_page(&position, PAGE_ROWS).await?;
        tally.add(page.counts, limits, |row, counted| {
            row.dead_letters += counted.rows;
            row.dead_letter_bytes += counted.bytes;
        });
        after = page.next;
        pause_before(&after).await;
    }
    let malformed = store.count_dead_letters_without_connection(EXACT_MAX).await?;
    let dead_letters = tally.total + malformed;
    let mut after = Some(ChannelPosition::default());
    while let Some(position) = after {
        let page = store.count_message_page(&position, PAGE_ROWS).await?;
        tally.add(page.counts, limits, |row, counted| row.messages += counted.rows);
        after = page.next;
        pause_before(&after).await;
    }
    let mut after = Some(RowPosition::default());
    while let Some(position) = after {
        let page = store.count_failure_page(&position, PAGE_ROWS).await?;
        tally.add(page.counts, limits, |row, counted| row.messages += counted.rows);
        after = page.next;
        pause_before(&after).await;
    }
    let rows = tally.finish(limits);
    store.put_connection_backlog(&rows).await?;
    let outbox = store.outbox_backlog().await?;
    context.metrics.record_backlog(&BacklogStats {
        deliveries,
        deliveries_oldest: oldest,
        dead_letters,
        outbox,
        full_of_deliveries: rows.iter().filter(|row| row.deliveries_full).count(),
        full_of_dead_letters: rows.iter().filter(|row| row.dead_letters_full).count(),
    });
    Ok(())
}

async fn pause_before<P>(next: &Option<P>) {
    if next.is_some() {
        tokio::time::sleep(PAGE_INTERVAL).await;
    }
}

/// Counts of a round. Pages are in the order of connections, so only the last connection and those
/// near a limit are kept in memory.
#[derive(Default)]
struct Tally {
    total: i64,
    last: ConnectionBacklog,
    notable: BTreeMap<String, ConnectionBacklog>,
}

impl Tally {
    fn add(
        &mut self,
        counts: Vec<CountedRows>,
        limits: &BacklogLimits,
        add: impl Fn(&mut ConnectionBacklog, &CountedRows),
    ) {
        for counted in counts {
            self.total += counted.rows;
            if counted.connection != self.last.connection_id {
                self.keep_last(limits);
                let kept = self.notable.remove(&counted.connection);
                let connection_id = counted.connection.clone();
                let new = || ConnectionBacklog { connection_id, ..ConnectionBacklog::default() };
                self.last = kept.unwrap_or_else(new);
            }
            add(&mut self.last, &counted);
        }
    }

    fn keep_last(&mut self, limits: &BacklogLimits) {
        let last = std::mem::take(&mut self.last);
        if last.is_notable(limits) {
            self.notable.insert(last.connection_id.clone(), last);
        }
    }

    fn finish(mut self, limits: &BacklogLimits) -> Vec<ConnectionBacklog> {
        self.keep_last(limits);
        let mut rows: Vec<_> = self.notable.into_values().collect();
        rows.iter_mut().for_each(|row| row.apply_limits(limits));
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> BacklogLimits {
        BacklogLimits { rows: 1_000, bytes: 1 << 20 }
    }

    fn counted(connection: &str, rows: i64, bytes: i64) -> CountedRows {
        CountedRows { connection: connection.into(), rows, bytes }
    }

    fn add_deliveries(row: &mut ConnectionBacklog, counted: &CountedRows) {
        row.deliveries += counted.rows;
        row.delivery_bytes += counted.bytes;
    }

    fn add_dead_letters(row: &mut ConnectionBacklog, counted: &CountedRows) {
        row.dead_letters += counted.rows;
        row.dead_letter_bytes += counted.bytes;
    }

    #[test]
    fn adds_pages_of_one_connection() {
        let mut tally = Tally::default();
        tally.add(vec![counted("a", 600, 1), counted("b", 400, 1)], &limits(), add_deliveries);
        tally.add(vec![counted("b", 600, 1), counted("c", 9, 1)], &limits(), add_deliveries);
        assert_eq!(std::mem::take(&mut tally.total), 1_609);
        tally.add(
            vec![counted("a", 1_000, 1), counted("d", 2_000, 1)],
            &limits(),
            add_dead_letters,
        );
        let rows = tally.finish(&limits());
        let flags = |row: &ConnectionBacklog| {
            (row.deliveries, row.deliveries_full, row.dead_letters_full, row.ignores)
        };
        let found: Vec<_> =
            rows.iter().map(|row| (row.connection_id.as_str(), flags(row))).collect();
        assert_eq!(
            found,
            [
                ("a", (600, false, true, false)),
                ("b", (1_000, true, false, false)),
                ("d", (0, false, true, true)),
            ]
        );
    }

    #[test]
    fn limits_bytes() {
        let mut tally = Tally::default();
        tally.add(
            vec![counted("a", 1, 1 << 20), counted("b", 1, 20_000)],
            &limits(),
            add_deliveries,
        );
        let rows = tally.finish(&limits());
        assert!(rows[0].deliveries_full && !rows[1].deliveries_full && rows.len() == 2);
    }
}
