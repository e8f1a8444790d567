//! Access to the stream, checked by periodic requests to NATS.
//!
//! A connection to NATS does not prove access: with the NATS user of another process it is
//! established, and every request times out. A worker that cannot read must not hold partitions, so
//! the lease manager releases them, and the worker is not ready.

use async_nats::jetstream;
use shared::{runtime::telemetry::ErrorChain, stream::STREAM};
use std::time::Duration;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

/// Interval of requests.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which unanswered requests count as missing access. Longer than a leader election in
/// NATS, so that an election moves no partition.
const ACCESS_TTL: Duration = Duration::from_secs(12);
/// Maximum wait for the first result at start.
const FIRST_RESULT_TIMEOUT: Duration = Duration::from_secs(2);

/// Results of the latest requests.
#[derive(Debug, Clone, Default)]
struct Results {
    answered_at: Option<Instant>,
    /// Error of the last request. `None` if NATS answered it.
    error: Option<String>,
}

/// Access to the stream. Cheap to clone.
#[derive(Clone)]
pub struct StreamAccess(watch::Receiver<Results>);

/// Task that probes the access.
pub struct StreamProbe {
    js: jetstream::Context,
    results: watch::Sender<Results>,
}

impl StreamProbe {
    pub fn new(js: jetstream::Context) -> Self {
        Self { js, results: watch::Sender::default() }
    }

    /// Returns the access that this task observes.
    pub fn access(&self) -> StreamAccess {
        StreamAccess(self.results.subscribe())
    }

    /// Sends requests at intervals until `stop` is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        let probing = async {
            loop {
                let answered = self.js.get_stream(STREAM).await;
                self.results.send_modify(|results| match answered {
                    Ok(_) => {
                        *results = Results { answered_at: Some(Instant::now()), error: None };
                    }
                    Err(error) => results.error = Some(ErrorChain(&error).to_string()),
                });
                sleep(PROBE_INTERVAL).await;
            }
        };
        stop.run_until_cancelled(probing).await;
    }
}

impl StreamAccess {
    /// Returns whether NATS answered a request within [`ACCESS_TTL`].
    pub fn works(&self) -> bool {
        self.0.borrow().answered_at.is_some_and(|at| at.elapsed() < ACCESS_TTL)
    }

    /// Returns the error of the last request.
    pub fn error(&self) -> Option<String> {
        self.0.borrow().error.clone()
    }

    /// Waits for the first result, for a limited time.
    pub async fn wait_for_first_result(&mut self) {
        let has_result =
            |results: &Results| results.answered_at.is_some() || results.error.is_some();
        // Without a result, `works` returns false.
        let _ = timeout(FIRST_RESULT_TIMEOUT, self.0.wait_for(has_result)).await;
    }
}
