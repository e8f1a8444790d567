//! Commits that come at the same time are made together.
//!
//! In: webhooks with effects that decide nothing. Out: what became of each. While one group is at Postgres the next gathers; nobody
//! waits for company: alone, a webhook goes at once. A group that Postgres refuses is committed one by one, so that one
//! bad webhook is its own trouble and no other's.

use crate::metrics::Metrics;
use shared::store::{Committed, Effects, OneOfMany, Owner, Position, Store, StoreError};
use std::{sync::Arc, time::Instant};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Webhooks of one group, at most.
const GROUP_MAX: usize = 128;
/// Groups at Postgres at once: one is written while the answer to the other is under way.
const AT_ONCE: usize = 2;

/// Commits webhooks together. Cheap to clone.
#[derive(Clone)]
pub struct Groups(mpsc::UnboundedSender<Waiting>);

struct Waiting {
    owner: Owner,
    at: Position,
    effects: Arc<Effects>,
    answer: oneshot::Sender<Result<Committed, StoreError>>,
}

impl Groups {
    /// Begins to gather.
    pub fn new(store: Store, metrics: Arc<Metrics>) -> Self {
        let (sender, mut waiting) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            let turns = Arc::new(Semaphore::new(AT_ONCE));
            loop {
                let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
                let mut group = Vec::new();
                if waiting.recv_many(&mut group, GROUP_MAX).await == 0 {
                    return; // nobody will ever commit again
                }
                let (store, metrics) = (store.clone(), Arc::clone(&metrics));
                tokio::spawn(async move {
                    let (size, began) = (group.len(), Instant::now());
                    commit(&store, group).await;
                    metrics.committed(size, began.elapsed());
                    drop(turn);
                });
            }
        });
        Self(sender)
    }

    /// Commits a webhook, with whichever others are there. The window bounds how many wait.
    pub async fn commit(
        &self,
        owner: &Owner,
        at: &Position,
        effects: &Arc<Effects>,
    ) -> Result<Committed, StoreError> {
        let (answer, answered) = oneshot::channel();
        let (owner, at, effects) = (owner.clone(), at.clone(), Arc::clone(effects));
        let waiting = Waiting { owner, at, effects, answer };
        if self.0.send(waiting).is_err() {
            return std::future::pending().await; // the runtime ends
        }
        match answered.await {
            Ok(committed) => committed,
            Err(_) => std::future::pending().await,
        }
    }
}

async fn commit(store: &Store, group: Vec<Waiting>) {
    let many: Vec<OneOfMany<'_>> = group
        .iter()
        .map(|one| OneOfMany { owner: &one.owner, at: &one.at, effects: &one.effects })
        .collect();
    match store.commit_together(&many).await {
        Ok(committed) => {
            for (one, committed) in group.into_iter().zip(committed) {
                let _ = one.answer.send(Ok(committed)); // who does not wait any more has lost the partition
            }
        }
        Err(error) if error.is_about_the_data() => {
            for one in group {
                let committed = store.commit(&one.owner, &one.at, &one.effects).await;
                let _ = one.answer.send(committed);
            }
        }
        // Away: everybody tries again.
        Err(error) => {
            let error = Arc::new(error);
            for one in group {
                let _ = one.answer.send(Err(StoreError::Together(Arc::clone(&error))));
            }
        }
    }
}
