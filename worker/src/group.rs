//! Commits that come at the same time are made together.
//!
//! In: webhooks with effects that decide nothing. Out: what became of each. A group that Postgres refuses is committed one by
//! one, so that one bad webhook is its own trouble and no other's.

use crate::{
    metrics::Metrics,
    together::{Together, all_failed},
};
use shared::store::{Committed, Effects, OneOfMany, Owner, Position, Store, StoreError};
use std::{sync::Arc, time::Instant};

/// Commits webhooks together. Cheap to clone.
#[derive(Clone)]
pub struct Groups(Together<Commit, Result<Committed, StoreError>>);

struct Commit {
    owner: Owner,
    at: Position,
    effects: Arc<Effects>,
}

impl Groups {
    /// Begins to gather.
    pub fn new(store: Store, metrics: Arc<Metrics>) -> Self {
        Self(Together::new(move |group: Vec<Commit>| {
            let (store, metrics) = (store.clone(), Arc::clone(&metrics));
            async move {
                let began = Instant::now();
                let committed = commit(&store, &group).await;
                metrics.committed(group.len(), began.elapsed());
                committed
            }
        }))
    }

    /// Commits a webhook. The window bounds how many wait.
    pub async fn commit(
        &self,
        owner: &Owner,
        at: &Position,
        effects: &Arc<Effects>,
    ) -> Result<Committed, StoreError> {
        let (owner, at, effects) = (owner.clone(), at.clone(), Arc::clone(effects));
        self.0.ask(Commit { owner, at, effects }).await
    }
}

async fn commit(store: &Store, group: &[Commit]) -> Vec<Result<Committed, StoreError>> {
    let many: Vec<OneOfMany<'_>> = group
        .iter()
        .map(|one| OneOfMany { owner: &one.owner, at: &one.at, effects: &one.effects })
        .collect();
    match store.commit_together(&many).await {
        Ok(committed) => committed.into_iter().map(Ok).collect(),
        Err(error) if error.is_about_the_data() => {
            let mut each = Vec::new();
            for one in group {
                match store.commit(&one.owner, &one.at, &one.effects).await {
                    Err(error) if !error.is_about_the_data() => {
                        each.extend(all_failed(group.len() - each.len(), error));
                        break;
                    }
                    committed => each.push(committed),
                }
            }
            each
        }
        // Away: everybody tries again.
        Err(error) => all_failed(group.len(), error),
    }
}
