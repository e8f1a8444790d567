//! How calls to Slack ended, written down for many at once.
//!
//! In: a row of the outbox, and how its try ended. Out: whether that is written. Nothing of it can be refused by Postgres for what
//! it says, so no row is another's trouble.

use crate::together::{Together, all_failed};
use shared::store::{Settled, Store, StoreError};

/// Writes down for many at once. Cheap to clone.
#[derive(Clone)]
pub struct Settling(Together<Settled, Result<(), StoreError>>);

impl Settling {
    /// Begins to gather.
    pub fn new(store: Store) -> Self {
        Self(Together::new(move |many: Vec<Settled>| {
            let store = store.clone();
            async move {
                match store.settle_outgoing(&many).await {
                    Ok(()) => many.iter().map(|_| Ok(())).collect(),
                    Err(error) => all_failed(many.len(), error),
                }
            }
        }))
    }

    /// Writes down how a try ended. The rows under way bound how many wait.
    pub async fn settle(&self, settled: Settled) -> Result<(), StoreError> {
        self.0.ask(settled).await
    }
}
