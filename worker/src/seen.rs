//! Whether a webhook is done already, asked for many at once.
//!
//! In: a webhook's key, before anything outside is called for it. Out: whether it is in `seen`. As with commits (see `group`),
//! while one question is at Postgres the next gathers, and nobody waits for company: a webhook that comes alone is asked
//! about at once. Each is asked about after it came, so the answer is as fresh as if it had been asked alone.

use shared::{
    codec::envelope::DedupeKey,
    store::{LIVE, Store, StoreError},
};
use std::sync::Arc;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Webhooks of one question, at most.
const TOGETHER_MAX: usize = 128;
/// Questions at Postgres at once.
const AT_ONCE: usize = 2;

/// Asks for many at once. Cheap to clone.
#[derive(Clone)]
pub struct Seen {
    store: Store,
    asking: mpsc::UnboundedSender<Asking>,
}

struct Asking {
    key: DedupeKey,
    answer: oneshot::Sender<Result<bool, StoreError>>,
}

impl Seen {
    /// Begins to gather.
    pub fn new(store: Store) -> Self {
        let (asking, mut asked) = mpsc::unbounded_channel();
        let asks = store.clone();
        tokio::spawn(async move {
            let turns = Arc::new(Semaphore::new(AT_ONCE));
            loop {
                let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
                let mut together = Vec::new();
                if asked.recv_many(&mut together, TOGETHER_MAX).await == 0 {
                    return; // nobody will ever ask again
                }
                let store = asks.clone();
                tokio::spawn(async move {
                    ask(&store, together).await;
                    drop(turn);
                });
            }
        });
        Self { store, asking }
    }

    /// Whether a webhook of this scope is done. The slots bound how many ask.
    pub async fn is_seen(&self, scope: &str, key: &DedupeKey) -> Result<bool, StoreError> {
        if scope != LIVE {
            return self.store.is_seen(scope, key).await;
        }
        let (answer, answered) = oneshot::channel();
        if self.asking.send(Asking { key: key.clone(), answer }).is_err() {
            return std::future::pending().await; // the runtime ends
        }
        match answered.await {
            Ok(seen) => seen,
            Err(_) => std::future::pending().await,
        }
    }
}

async fn ask(store: &Store, together: Vec<Asking>) {
    let keys: Vec<DedupeKey> = together.iter().map(|asking| asking.key.clone()).collect();
    let seen = store.seen_of(&keys).await.map_err(Arc::new);
    for Asking { key, answer } in together {
        let seen = match &seen {
            Ok(seen) => Ok(seen.contains(&key)),
            Err(error) => Err(StoreError::Together(Arc::clone(error))),
        };
        let _ = answer.send(seen); // who does not wait any more has lost the partition
    }
}
