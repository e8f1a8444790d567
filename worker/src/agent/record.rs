//! Calls that are not made: what a dry run of a replay asks no agent.

use std::sync::{Arc, Mutex, PoisonError};

/// Calls that were not made. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Record(Arc<Mutex<Vec<String>>>);

impl Record {
    /// What was recorded since this was asked last.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn note(&self, call: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(call);
    }
}
