//! Bytes of each connection in a partition, so that no connection fills the stream.
//!
//! The stream does not count bytes by subject, so the owner of a partition counts what it commits.
//! Each connection is counted in halves of its share. When the newer half is full, the older one is
//! due to be purged: at least half a share of the newest history stays, for replays and for a
//! restored Postgres. A new owner counts from zero. Its first purge covers the messages of previous
//! owners, too, because a purge begins at the first message.

use shared::{domain::ConnectionId, stream::PARTITIONS_PER_CONNECTION};
use std::collections::HashMap;

/// Maximum number of connections that are counted in a partition. Those with the fewest bytes are
/// dropped first.
const MAX_CONNECTIONS: usize = 1_024;

/// Counts of one partition.
pub struct ConnectionShares {
    half: u64,
    counts: HashMap<ConnectionId, Count>,
}

#[derive(Default)]
struct Count {
    /// Last sequence of the older half, once it is full.
    older_to: Option<u64>,
    newer_bytes: u64,
}

/// Messages of a connection that are over its share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverShare {
    pub connection: ConnectionId,
    /// Last sequence to be purged. It is committed, and later ones of the connection are, too.
    pub up_to: u64,
}

impl ConnectionShares {
    /// Creates empty counts. `share` is that of a connection in all its partitions together.
    pub fn new(share: u64) -> Self {
        let half = share / u64::from(PARTITIONS_PER_CONNECTION) / 2;
        Self { half, counts: HashMap::new() }
    }

    /// Counts a committed message. Returns the messages over the share of its connection.
    pub fn record(
        &mut self,
        connection: ConnectionId,
        sequence: u64,
        bytes: usize,
    ) -> Option<OverShare> {
        if self.counts.len() >= MAX_CONNECTIONS && !self.counts.contains_key(&connection) {
            self.drop_smallest();
        }
        let count = self.counts.entry(connection).or_default();
        count.newer_bytes += bytes as u64;
        if count.newer_bytes < self.half {
            return None;
        }
        count.newer_bytes = 0;
        let older_to = count.older_to.replace(sequence);
        older_to.map(|up_to| OverShare { connection, up_to })
    }

    /// Drops connections whose bytes do not exceed the average. Keeps those with an older half.
    fn drop_smallest(&mut self) {
        let sum: u64 = self.counts.values().map(|count| count.newer_bytes).sum();
        let average = sum.div_ceil(self.counts.len() as u64);
        self.counts.retain(|_, count| count.older_to.is_some() || count.newer_bytes > average);
        if self.counts.len() >= MAX_CONNECTIONS {
            self.counts.clear(); // all are large: each keeps at most another share
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARE: u64 = 8 * 1_000;

    fn connection(n: usize) -> ConnectionId {
        format!("{n:032x}").parse().expect("valid id")
    }

    /// A connection holds at most its share of a partition and one message, and keeps half of its
    /// share.
    #[test]
    fn bounds_bytes_of_connection() {
        for size in [1, 7, 90, 499, 500, 501, 5_000] {
            let mut shares = ConnectionShares::new(SHARE);
            let (mut first, mut purged) = (1, 0);
            for sequence in 1..=20_000_u64 {
                if let Some(over) = shares.record(connection(1), sequence, size) {
                    assert_eq!(over.connection, connection(1));
                    assert!((first..sequence).contains(&over.up_to), "{over:?}");
                    (first, purged) = (over.up_to + 1, purged + 1);
                }
                let held = (sequence + 1 - first) as usize * size;
                let most = (1_000 + 2 * size).max(3 * size);
                assert!(held <= most, "{size}: {held} at {sequence}");
                assert!(purged == 0 || held >= 500, "{size}: {held} at {sequence}");
            }
            assert!(purged > 0, "{size}");
        }
    }

    #[test]
    fn counts_connections_apart() {
        let mut shares = ConnectionShares::new(SHARE);
        for sequence in 0..1_000 {
            assert_eq!(shares.record(connection(sequence % 3), sequence as u64, 1), None);
        }
    }

    #[test]
    fn drops_small_counts() {
        let mut shares = ConnectionShares::new(SHARE);
        let mut purges = 0;
        for n in 0..100_000 {
            purges += usize::from(shares.record(connection(0), n as u64, 100).is_some());
            assert_eq!(shares.record(connection(n + 1), n as u64, 1), None);
            assert!(shares.counts.len() <= MAX_CONNECTIONS);
        }
        assert!(purges > 100_000 / 5 - 10, "{purges}");
    }
}
