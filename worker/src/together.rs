//! What many ask of Postgres at the same time, asked once.
//!
//! In: an ask. Out: its answer. While one batch is at Postgres the next gathers; nobody waits for company: alone, an ask goes at
//! once. Each is asked after it came, so the answer is as fresh as if it had been asked alone.

use shared::store::StoreError;
use std::{future::Future, sync::Arc};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Asks of one batch, at most.
const BATCH_MAX: usize = 128;
/// Batches at Postgres at once: one is worked while the answer to the other is under way.
const AT_ONCE: usize = 2;

/// Gathers asks of one sort.
pub struct Together<A, R>(mpsc::UnboundedSender<(A, oneshot::Sender<R>)>);

impl<A, R> Clone for Together<A, R> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<A: Send + 'static, R: Send + 'static> Together<A, R> {
    /// Begins to gather. `answer` gives one answer for each ask, in their order.
    pub fn new<F>(answer: impl Fn(Vec<A>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Vec<R>> + Send,
    {
        let (sender, mut asked) = mpsc::unbounded_channel();
        let answer = Arc::new(answer);
        tokio::spawn(async move {
            let turns = Arc::new(Semaphore::new(AT_ONCE));
            loop {
                let Ok(turn) = Arc::clone(&turns).acquire_owned().await else { return };
                let mut batch = Vec::new();
                if asked.recv_many(&mut batch, BATCH_MAX).await == 0 {
                    return; // nobody will ever ask again
                }
                let answer = Arc::clone(&answer);
                tokio::spawn(async move {
                    let (asks, waiting): (Vec<A>, Vec<oneshot::Sender<R>>) =
                        batch.into_iter().unzip();
                    for (waits, answer) in waiting.into_iter().zip(answer(asks).await) {
                        let _ = waits.send(answer); // who does not wait any more has lost the partition
                    }
                    drop(turn);
                });
            }
        });
        Self(sender)
    }

    /// Asks, with whichever others are there. Who asks bounds how many wait.
    pub async fn ask(&self, ask: A) -> R {
        let (waits, answered) = oneshot::channel();
        if self.0.send((ask, waits)).is_err() {
            return std::future::pending().await; // the runtime ends
        }
        match answered.await {
            Ok(answer) => answer,
            Err(_) => std::future::pending().await,
        }
    }
}

/// The same failure for each of so many.
pub fn all_failed<R>(many: usize, error: StoreError) -> Vec<Result<R, StoreError>> {
    let error = Arc::new(error);
    (0..many).map(|_| Err(StoreError::Together(Arc::clone(&error)))).collect()
}
