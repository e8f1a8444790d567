//! Signing secrets that the simulated Slack uses during a rotation.
//!
//! The current secrets take turns. Clones share them.

use std::sync::{Arc, Mutex, PoisonError};

/// The current secrets; initially the secret of the app.
#[derive(Debug, Clone, Default)]
pub struct Signing(Arc<Mutex<SecretsInTurn>>);

#[derive(Debug, Default)]
struct SecretsInTurn {
    secrets: Vec<String>,
    next: usize,
}

impl Signing {
    /// Replaces the secrets. An empty list means the secret of the app.
    pub fn use_secrets(&self, secrets: &[&str]) {
        let secrets = secrets.iter().map(|secret| (*secret).to_owned()).collect();
        *self.state() = SecretsInTurn { secrets, next: 0 };
    }

    /// Returns the secret of the next webhook of an app with the secret `own`.
    pub fn next(&self, own: &str) -> String {
        let mut state = self.state();
        state.next += 1;
        let count = state.secrets.len().max(1);
        // Secrets do not alternate, because webhooks alternate between two ingests, and each ingest
        // must get each secret.
        let index = state.next.count_ones() as usize % count;
        state.secrets.get(index).cloned().unwrap_or_else(|| own.to_owned())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, SecretsInTurn> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
