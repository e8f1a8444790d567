//! Sync responses: bodies from workers for the webhooks that Slack expects an answer to.
//!
//! A request opens a [`Window`]. A worker sends the body as a NATS request to
//! `slack.reply.<ingest>.<id>`, and ingest replies `relayed` or `late`. Only workers may publish to
//! this subject; to an inbox, any client that ingest sends a request to could. The reply is
//! `relayed` if and only if the waiting request takes the body, also if the window closes at the
//! same moment. After any other reply the worker calls Slack itself.

use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt;
use shared::{
    domain::HeaderToken,
    stream::{REPLY_SUBJECTS, RESPONSE_LATE, RESPONSE_RELAYED, SyncResponseWindow},
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// Maximum time that a request waits for a sync response, from its arrival.
const SYNC_RESPONSE_TIMEOUT: Duration = Duration::from_millis(2_400);
/// Time between two attempts to subscribe.
const RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// Open windows of this ingest.
#[derive(Clone)]
pub struct SyncResponses(Arc<Inner>);

struct Inner {
    subject: String,
    next_id: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Bytes>>>,
}

/// Open window of one request. Closes when dropped.
pub struct Window {
    responses: SyncResponses,
    id: u64,
    deadline: Instant,
    body: oneshot::Receiver<Bytes>,
}

impl SyncResponses {
    /// Creates an empty set of windows. `ingest_name` is a subject token, unique among all ingests.
    pub fn new(ingest_name: &str) -> Self {
        Self(Arc::new(Inner {
            subject: format!("{REPLY_SUBJECTS}.{ingest_name}"),
            next_id: AtomicU64::new(1),
            waiting: Mutex::default(),
        }))
    }

    /// Opens a window for a request that arrived at `arrived_at`, and returns it with its form in
    /// the envelope.
    pub fn open(&self, arrived_at: Instant) -> (Window, Option<SyncResponseWindow>) {
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, body) = oneshot::channel();
        self.waiting().insert(id, sender);
        let deadline = arrived_at + SYNC_RESPONSE_TIMEOUT;
        let window = Window { responses: self.clone(), id, deadline, body };
        let left = deadline.saturating_duration_since(Instant::now());
        #[expect(clippy::disallowed_methods, reason = "a webhook arrives")]
        let by = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + left;
        let to = HeaderToken::new(format!("{}.{id}", self.0.subject));
        (window, to.map(|to| SyncResponseWindow { to, by_ms: by.as_millis() as u64 }))
    }

    /// Receives sync responses until `stop` is cancelled.
    pub async fn listen(self, client: Client, stop: CancellationToken) {
        let subjects = format!("{}.*", self.0.subject);
        let listen = async {
            loop {
                match client.subscribe(subjects.clone()).await {
                    Ok(mut messages) => {
                        while let Some(message) = messages.next().await {
                            let result = if self.deliver(&message) {
                                RESPONSE_RELAYED
                            } else {
                                RESPONSE_LATE
                            };
                            if let Some(worker) = message.reply {
                                // A worker without a reply acts as after `late`.
                                let _ = client.publish(worker, result.into()).await;
                            }
                        }
                    }
                    Err(error) => warn!(%error, "failed to subscribe to sync responses"),
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        };
        stop.run_until_cancelled(listen).await;
    }

    fn deliver(&self, message: &async_nats::Message) -> bool {
        let id = message.subject.rsplit('.').next().and_then(|id| id.parse().ok());
        let waiting = id.and_then(|id: u64| self.waiting().remove(&id));
        waiting.is_some_and(|request| request.send(message.payload.clone()).is_ok())
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, oneshot::Sender<Bytes>>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    /// Waits for the body until the window closes. The body may be empty.
    pub async fn wait(mut self) -> Option<Bytes> {
        if let Ok(body) = timeout_at(self.deadline, &mut self.body).await {
            return body.ok();
        }
        // Rejects later bodies. An earlier one was answered `relayed`, so it is used.
        self.body.close();
        self.body.try_recv().ok()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.responses.waiting().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(subject: &str) -> async_nats::Message {
        async_nats::Message {
            subject: subject.into(),
            reply: None,
            payload: "x".into(),
            headers: None,
            status: None,
            description: None,
            length: 1,
        }
    }

    #[tokio::test]
    async fn relays_once_per_window() {
        let responses = SyncResponses::new("i1");
        let (first, _) = responses.open(Instant::now());
        let (second, reply) = responses.open(Instant::now());
        let subject = reply.expect("valid subject").to;
        assert_eq!(subject.as_str(), "slack.reply.i1.2");
        assert!(responses.deliver(&message(subject.as_str())));
        assert!(!responses.deliver(&message(subject.as_str())), "the second body is late");
        assert_eq!(second.wait().await.as_deref(), Some(&b"x"[..]));
        drop(first);
        assert!(!responses.deliver(&message("slack.reply.i1.1")), "the window is closed");
        assert!(responses.waiting().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn closes_window_in_time() {
        let responses = SyncResponses::new("i1");
        let arrived_at = Instant::now();
        let (window, _) = responses.open(arrived_at);
        assert_eq!(window.wait().await, None);
        assert!(arrived_at.elapsed() < SYNC_RESPONSE_TIMEOUT + Duration::from_millis(5));
        assert!(responses.waiting().is_empty());
    }
}
