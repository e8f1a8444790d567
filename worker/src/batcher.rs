//! Coalesces concurrent requests into batched queries.
//!
//! While one batch is at Postgres the next gathers; a request never waits for company: alone, it goes at once. Each batch
//! begins after its requests came, so an answer is as fresh as that of a query of its own.

use std::{future::Future, sync::Arc};
use tokio::sync::{Semaphore, mpsc, oneshot};

/// Requests of one batch, at most.
const BATCH_MAX: usize = 128;
/// Batches at Postgres at once: one is worked while the answer to the other is under way.
const BATCHES_MAX: usize = 2;

/// Gathers requests of one kind.
pub struct Batcher<Req, Res>(mpsc::UnboundedSender<(Req, oneshot::Sender<Res>)>);

impl<Req, Res> Clone for Batcher<Req, Res> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<Req: Send + 'static, Res: Send + 'static> Batcher<Req, Res> {
    /// Begins to gather. `run` returns one result for each request, in their order.
    pub fn new<F>(run: impl Fn(Vec<Req>) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Vec<Res>> + Send,
    {
        let (sender, mut requests) = mpsc::unbounded_channel();
        let run = Arc::new(run);
        tokio::spawn(async move {
            let places = Arc::new(Semaphore::new(BATCHES_MAX));
            loop {
                let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
                let mut batch = Vec::new();
                if requests.recv_many(&mut batch, BATCH_MAX).await == 0 {
                    return; // every sender is gone
                }
                let run = Arc::clone(&run);
                tokio::spawn(async move {
                    let (requests, waiting): (Vec<Req>, Vec<oneshot::Sender<Res>>) =
                        batch.into_iter().unzip();
                    for (sender, result) in waiting.into_iter().zip(run(requests).await) {
                        let _ = sender.send(result); // the caller may have been cancelled
                    }
                    drop(place);
                });
            }
        });
        Self(sender)
    }

    /// Runs a request with whichever others are there; `None` when its batch panicked. The caller bounds how many wait.
    pub async fn run(&self, request: Req) -> Option<Res> {
        let (sender, result) = oneshot::channel();
        self.0.send((request, sender)).ok()?;
        result.await.ok()
    }
}
