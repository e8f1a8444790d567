//! How often in a row Slack refused a connection's token.
//!
//! In: refusals that `auth.test` confirmed, and successes. Out: the count, since the token last worked or changed. Kept in
//! memory: a worker that starts anew counts anew, and a token that is bad is refused soon enough again.

use shared::types::ConnectionId;
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

/// Connections counted at most; then all are forgotten.
const KEPT_MAX: usize = 10_000;

/// The counts.
#[derive(Debug, Clone, Default)]
pub struct Refusals(Arc<Mutex<HashMap<ConnectionId, (i64, u32)>>>);

impl Refusals {
    /// One more, of the token that this version of the connection has.
    pub fn count(&self, connection: ConnectionId, version: i64) -> u32 {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.len() >= KEPT_MAX {
            counts.clear();
        }
        let entry = counts.entry(connection).or_insert((version, 0));
        if entry.0 != version {
            *entry = (version, 0);
        }
        entry.1 += 1;
        entry.1
    }

    /// It works.
    pub fn forget(&self, connection: ConnectionId) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&connection);
    }
}
