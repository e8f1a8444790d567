//! The few webhooks whose answer Slack wants in the HTTP response: a window is held open for a worker.
//!
//! In: a worker's answer, as a NATS request on `slack.reply.<ingest>.<id>`, a subject of our own that only workers may
//! publish to (an inbox would do for anyone who may answer us). Out: the answer to the one request that waits for it,
//! and to the worker the word `relayed`, or `late`. The word is the truth: an answer is relayed if and only if the
//! waiting request takes it, also when both happen at the same moment. Whoever hears anything else says it another way.

use async_nats::Client;
use bytes::Bytes;
use futures_util::StreamExt;
use shared::{
    codec::envelope::{LATE, RELAYED, ReplyWindow, Word},
    stream::REPLY_SUBJECTS,
};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// How long Slack's request may be held for an answer, counted from its arrival.
pub const WINDOW: Duration = Duration::from_millis(2_400);
/// Between two tries to subscribe.
const PAUSE: Duration = Duration::from_millis(200);

/// The windows that are open.
#[derive(Clone)]
pub struct Replies(Arc<Inner>);

struct Inner {
    subject: String,
    next: AtomicU64,
    waiting: Mutex<HashMap<u64, oneshot::Sender<Bytes>>>,
}

/// An open window. Closed when dropped.
pub struct Window {
    replies: Replies,
    id: u64,
    until: Instant,
    answer: oneshot::Receiver<Bytes>,
}

impl Replies {
    /// None open. `ingest` is this process's name among the others: one token of a subject.
    pub fn new(ingest: &str) -> Self {
        let (subject, waiting) = (format!("{REPLY_SUBJECTS}.{ingest}"), Mutex::default());
        Self(Arc::new(Inner { subject, next: AtomicU64::new(1), waiting }))
    }

    /// Opens a window for a request that arrived then; gives what the envelope says of it.
    pub fn open(&self, arrived: Instant) -> (Window, Option<ReplyWindow>) {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        self.waiting().insert(id, sender);
        let window = Window { replies: self.clone(), id, until: arrived + WINDOW, answer };
        let left = window.until.saturating_duration_since(Instant::now());
        let by = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default() + left;
        let to = Word::new(format!("{}.{id}", self.0.subject));
        (window, to.map(|to| ReplyWindow { to, by_ms: by.as_millis() as u64 }))
    }

    /// Hears answers until told to stop.
    pub async fn hear(self, client: Client, stop: CancellationToken) {
        let subjects = format!("{}.*", self.0.subject);
        loop {
            let heard = async {
                match client.subscribe(subjects.clone()).await {
                    Ok(mut answers) => {
                        while let Some(message) = answers.next().await {
                            let word = if self.deliver(&message) { RELAYED } else { LATE };
                            if let Some(worker) = message.reply {
                                let _ = client.publish(worker, word.into()).await; // unheard is the same as late
                            }
                        }
                    }
                    Err(error) => warn!(%error, "answers can't be heard"),
                }
                tokio::time::sleep(PAUSE).await;
            };
            tokio::select! { _ = stop.cancelled() => return, () = heard => {} }
        }
    }

    fn deliver(&self, message: &async_nats::Message) -> bool {
        let id = message.subject.rsplit('.').next().and_then(|id| id.parse().ok());
        let waiting = id.and_then(|id: u64| self.waiting().remove(&id));
        waiting.is_some_and(|request| request.send(message.payload.clone()).is_ok())
    }

    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<Bytes>>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    /// Waits for the answer, until the window closes. An empty answer is an answer.
    pub async fn answer(mut self) -> Option<Bytes> {
        if let Ok(answer) = tokio::time::timeout_at(self.until, &mut self.answer).await {
            return answer.ok();
        }
        // From here on nothing more gets in; what got in before was told `relayed`, and is.
        self.answer.close();
        self.answer.try_recv().ok()
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.replies.waiting().remove(&self.id);
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
    async fn an_answer_is_relayed_to_the_one_that_waits_and_only_once() {
        let replies = Replies::new("i1");
        let (window, _) = replies.open(Instant::now());
        let (other, at) = replies.open(Instant::now());
        let subject = at.expect("a word").to;
        assert_eq!(subject.as_str(), "slack.reply.i1.2");
        assert!(replies.deliver(&message(subject.as_str())));
        assert!(!replies.deliver(&message(subject.as_str())), "the second is late");
        assert_eq!(other.answer().await.as_deref(), Some(&b"x"[..]));
        drop(window);
        assert!(!replies.deliver(&message("slack.reply.i1.1")), "nobody waits any more");
        assert!(replies.waiting().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_window_closes_in_time() {
        let replies = Replies::new("i1");
        let arrived = Instant::now();
        let (window, _) = replies.open(arrived);
        assert_eq!(window.answer().await, None);
        assert!(arrived.elapsed() < WINDOW + Duration::from_millis(5));
        assert!(replies.waiting().is_empty());
    }
}
