//! Permit to stream a response, which outlives the permit, timeout and key check of its request.

use super::{Api, Problem};
use crate::metrics::Rejection;
use shared::{
    operations::OperationError,
    store::{ApiCaller, StoreError},
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::OwnedSemaphorePermit, time::Instant};

/// Maximum number of concurrent streamed responses.
pub const MAX_STREAMS: usize = 8;
/// Maximum time of a streamed response.
const STREAM_TIMEOUT: Duration = Duration::from_secs(600);

/// Permit of a streamed response. Released when dropped.
pub struct StreamPermit {
    api: Arc<Api>,
    key: String,
    deadline: Instant,
    _permit: OwnedSemaphorePermit,
}

/// Failure that ends a streamed response after its status was sent.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The response took too long.
    #[error("the response took longer than {} s", STREAM_TIMEOUT.as_secs())]
    Timeout,
    /// The key was revoked or expired meanwhile.
    #[error("the API key is no longer valid")]
    KeyInvalid,
    /// An operation failed.
    #[error(transparent)]
    Operation(#[from] OperationError),
    /// Postgres failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl StreamPermit {
    /// Acquires a permit. Fails at [`MAX_STREAMS`] streamed responses.
    pub fn acquire(api: &Arc<Api>, caller: &ApiCaller) -> Result<Self, Problem> {
        let permit = Arc::clone(&api.streams).try_acquire_owned();
        let permit = permit.map_err(|_| {
            api.metrics.record_rejection(Rejection::Overloaded);
            Problem::unavailable("too many exports are in progress").retry_after(10)
        })?;
        let deadline = Instant::now() + STREAM_TIMEOUT;
        Ok(Self { api: Arc::clone(api), key: caller.key.clone(), deadline, _permit: permit })
    }

    /// Checks the timeout and the key before the next page.
    pub async fn check(&self) -> Result<(), StreamError> {
        if Instant::now() >= self.deadline {
            return Err(StreamError::Timeout);
        }
        match self.api.store.is_api_key_valid(&self.key).await? {
            true => Ok(()),
            false => Err(StreamError::KeyInvalid),
        }
    }
}
