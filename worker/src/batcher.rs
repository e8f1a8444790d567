//! Coalesces concurrent requests into batched queries.
//!
//! Used by dispatch and outbox. While [`BATCHES_MAX`] batches run, the next one fills. Otherwise a
//! request is sent at once. A batch begins after its requests arrived, so a result is as fresh as
//! that of a separate query.

use shared::store::{Store, StoreError};
use std::{future::Future, sync::Arc};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Maximum number of requests in a batch.
const BATCH_MAX: usize = 128;
/// Maximum number of concurrent batches: one runs while the result of the other is in transit.
const BATCHES_MAX: usize = 2;

/// Queue of requests of one kind, and the task that runs them in batches.
pub struct Batcher<Req, Res>(mpsc::UnboundedSender<(Req, oneshot::Sender<Res>)>);

impl<Req: Send + 'static, Res: Send + 'static> Batcher<Req, Res> {
    /// Creates a batcher and spawns its task. `run` returns one result per request, in order.
    pub fn new<F>(store: &Store, run: impl Fn(Store, Vec<Req>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Vec<Res>> + Send,
    {
        let (sender, mut requests) = mpsc::unbounded_channel();
        let (store, run) = (store.clone(), Arc::new(run));
        #[expect(clippy::disallowed_methods, reason = "ends when every sender is dropped")]
        tokio::spawn(async move {
            let permits = Arc::new(Semaphore::new(BATCHES_MAX));
            loop {
                let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
                let mut batch = Vec::new();
                if requests.recv_many(&mut batch, BATCH_MAX).await == 0 {
                    return; // every sender is dropped
                }
                let (store, run) = (store.clone(), Arc::clone(&run));
                #[expect(clippy::disallowed_methods, reason = "the callers wait for its results")]
                tokio::spawn(async move {
                    let (requests, senders): (Vec<Req>, Vec<oneshot::Sender<Res>>) =
                        batch.into_iter().unzip();
                    for (sender, result) in senders.into_iter().zip(run(store, requests).await) {
                        let _ = sender.send(result); // the caller may have been cancelled
                    }
                    drop(permit);
                });
            }
        });
        Self(sender)
    }

    /// Runs a request in the next batch. Returns `None` if the batch panicked. The queue is
    /// unbounded.
    pub async fn run(&self, request: Req) -> Option<Res> {
        let (sender, result) = oneshot::channel();
        self.0.send((request, sender)).ok()?;
        result.await.ok()
    }
}

/// Splits the result of a batch into one result for each of its `count` requests.
pub fn each_result<T>(
    count: usize,
    result: Result<Vec<T>, StoreError>,
) -> Vec<Result<T, StoreError>> {
    match result {
        Ok(all) => all.into_iter().map(Ok).collect(),
        Err(error) => {
            let error = Arc::new(error);
            (0..count).map(|_| Err(StoreError::Batch(Arc::clone(&error)))).collect()
        }
    }
}
