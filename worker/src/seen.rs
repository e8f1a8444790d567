//! Whether a webhook is done already, asked for many at once.
//!
//! In: a webhook's key, before anything outside is called for it. Out: whether it is in `seen`.

use crate::together::{Together, all_failed};
use shared::{
    codec::envelope::DedupeKey,
    store::{LIVE, Store, StoreError},
};

/// Asks for many at once. Cheap to clone.
#[derive(Clone)]
pub struct Seen {
    store: Store,
    asking: Together<DedupeKey, Result<bool, StoreError>>,
}

impl Seen {
    /// Begins to gather.
    pub fn new(store: Store) -> Self {
        let asks = store.clone();
        let asking = Together::new(move |keys: Vec<DedupeKey>| {
            let store = asks.clone();
            async move {
                match store.seen_of(&keys).await {
                    Ok(seen) => keys.iter().map(|key| Ok(seen.contains(key))).collect(),
                    Err(error) => all_failed(keys.len(), error),
                }
            }
        });
        Self { store, asking }
    }

    /// Whether a webhook of this scope is done. The slots bound how many ask.
    pub async fn is_seen(&self, scope: &str, key: &DedupeKey) -> Result<bool, StoreError> {
        match scope == LIVE {
            true => self.asking.ask(key.clone()).await,
            false => self.store.is_seen(scope, key).await,
        }
    }
}
