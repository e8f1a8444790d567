//! Whose token Slack refused lately, as far as this worker saw.
//!
//! In: refusals and successes. Out: whether a success has something to take back. How often in a row is counted in Postgres;
//! this keeps every other success from asking there.

use shared::types::ConnectionId;
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

/// Connections kept at most; then all are forgotten, and what is counted of them grows old.
const KEPT_MAX: usize = 10_000;

/// Connections whose token was refused. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Refusals(Arc<Mutex<HashSet<ConnectionId>>>);

impl Refusals {
    /// It was refused.
    pub fn note(&self, connection: ConnectionId) {
        let mut refused = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if refused.len() >= KEPT_MAX {
            refused.clear();
        }
        refused.insert(connection);
    }

    /// It works; whether it was refused before.
    pub fn forget(&self, connection: ConnectionId) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&connection)
    }
}
