//! What webhooks are signed with while that changes: Slack's side of a rotation.
//!
//! In: the secrets that are good now. Out: each of them in turn, for whoever signs next. Clones are one.

use std::sync::{Arc, Mutex, PoisonError};

/// The secrets of the moment; at first the app's own.
#[derive(Debug, Clone, Default)]
pub struct Signing(Arc<Mutex<Turns>>);

#[derive(Debug, Default)]
struct Turns {
    secrets: Vec<String>,
    next: usize,
}

impl Signing {
    /// From now on these are used, in turn.
    pub fn with(&self, secrets: &[&str]) {
        let secrets = secrets.iter().map(|secret| (*secret).to_owned()).collect();
        *self.turns() = Turns { secrets, next: 0 };
    }

    /// What to sign the next one with, by an app whose own secret is this.
    pub fn next(&self, own: &str) -> String {
        let mut turns = self.turns();
        turns.next += 1;
        let count = turns.secrets.len().max(1);
        turns.secrets.get(turns.next % count).cloned().unwrap_or_else(|| own.to_owned())
    }

    fn turns(&self) -> std::sync::MutexGuard<'_, Turns> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
