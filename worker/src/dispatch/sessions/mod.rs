//! Sessions in Slack: status, title and suggested prompts of conversations with agents.
//!
//! An attempt says what should be shown and never waits for it. A task makes the calls, within
//! Slack's limits: `agents.sessions.*`, and for apps that are not declared agents
//! `assistant.threads.*`. Where neither works nothing is shown. A status is no promise: a call that
//! is lost with its worker is made up for by the next attempt.

mod board;
mod calls;

pub use board::SessionKey;

use super::{attempt_context::AttemptContext, runs::Pace};
use crate::{
    agent_client::{AgentEvent, Prompt},
    context::WorkerTerm,
};
use board::Board;
use calls::{PROCESSING_FOR, call};
use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// Time after which the status of an agent is shown.
const STATUS_AFTER: Duration = Duration::from_secs(2);
/// Maximum number of calls at once.
const CALLS_MAX: usize = 64;
/// Maximum time of the last calls of a worker that stops.
const FINISH_TIMEOUT: Duration = Duration::from_millis(300);
/// Wait for the end of one of these calls.
const BUSY_WAIT: Duration = Duration::from_millis(50);
/// Minimum time between two calls of a connection in the mean. Slack allows about 50 in a minute.
const STATUS_INTERVAL: Duration = Duration::from_millis(1_500);

/// Sessions of this worker's attempts.
#[derive(Default)]
pub struct Sessions {
    board: Mutex<Board<Arc<WorkerTerm>>>,
    changed: Notify,
}

/// Session of an attempt. The status ends when it is dropped, unless another attempt goes on.
pub struct ActiveSession {
    sessions: Arc<Sessions>,
    key: SessionKey,
    goes_on: AtomicBool,
}

impl Sessions {
    /// Begins an attempt, whose status is shown if it is slow. `may_be_shown`: Slack may show that of
    /// an earlier one.
    pub fn begin(
        self: &Arc<Self>,
        key: SessionKey,
        term: &Arc<WorkerTerm>,
        may_be_shown: bool,
    ) -> ActiveSession {
        let due = Instant::now() + STATUS_AFTER;
        self.board().begin(&key, Arc::clone(term), due, may_be_shown);
        self.changed.notify_one();
        ActiveSession { sessions: Arc::clone(self), key, goes_on: AtomicBool::new(false) }
    }

    fn board(&self) -> MutexGuard<'_, Board<Arc<WorkerTerm>>> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ActiveSession {
    /// Sets whether another attempt goes on with the answer, so that the status stays.
    pub fn set_goes_on(&self, goes_on: bool) {
        self.goes_on.store(goes_on, Ordering::Relaxed);
    }

    /// Applies an event that changes the session.
    pub fn apply(&self, event: &AgentEvent) {
        match event {
            AgentEvent::Status(words) => {
                self.change(|board| board.set_words(&self.key, words.clone()));
            }
            AgentEvent::Title(title) => self.set_title(title.clone()),
            AgentEvent::Prompts(prompts) => self.set_prompts(prompts.clone()),
            _ => {}
        }
    }

    pub fn set_title(&self, title: String) {
        self.change(|board| board.set_title(&self.key, title));
    }

    pub fn set_prompts(&self, prompts: Vec<Prompt>) {
        self.change(|board| board.set_prompts(&self.key, prompts));
    }

    /// Records that a stream began: Slack shows that the agent works.
    pub fn stream_began(&self) {
        let renew_at = Instant::now() + PROCESSING_FOR;
        self.change(|board| board.shown_by_slack(&self.key, true, Some(renew_at)));
    }

    /// Records that Slack ended the status with the stream.
    pub fn ended_by_slack(&self) {
        self.change(|board| board.shown_by_slack(&self.key, false, None));
    }

    /// Records that a message is posted, with which Slack ends the status of a thread.
    pub fn reply_posted(&self) {
        self.change(|board| board.reply_posted(&self.key));
    }

    fn change(&self, change: impl FnOnce(&mut Board<Arc<WorkerTerm>>)) {
        change(&mut self.sessions.board());
        self.sessions.changed.notify_one();
    }
}

impl Drop for ActiveSession {
    fn drop(&mut self) {
        match self.goes_on.load(Ordering::Relaxed) {
            true => self.change(|board| board.forget(&self.key)),
            false => self.change(|board| board.end(&self.key)),
        }
    }
}

/// Ends what is shown, when the worker stops.
pub async fn finish(context: &AttemptContext) {
    let (due, _) = context.sessions.board().take_calls(Instant::now(), |_| Ok(()));
    let calls = due.iter().map(|(key, term, wanted)| call(context, term, key, wanted));
    let _ = tokio::time::timeout(FINISH_TIMEOUT, join_all(calls)).await;
}

/// Makes the calls that are due. Never returns.
pub async fn show(context: Arc<AttemptContext>) {
    let context = &*context;
    let sessions = &context.sessions;
    let mut calls = FuturesUnordered::new();
    loop {
        let now = Instant::now();
        let (mut due, mut next) = (Vec::new(), None);
        if calls.len() < CALLS_MAX {
            let mut room = CALLS_MAX - calls.len();
            (due, next) = sessions.board().take_calls(now, |connection| {
                if room == 0 {
                    return Err(BUSY_WAIT);
                }
                context.budgets.take(connection, Pace::Status, STATUS_INTERVAL, now)?;
                room -= 1;
                Ok(())
            });
        }
        for (key, term, wanted) in due {
            calls.push(async move {
                let end = call(context, &term, &key, &wanted).await;
                (key, wanted, end)
            });
        }
        tokio::select! {
            Some((key, wanted, end)) = calls.next() => {
                sessions.board().finish(&key, wanted, end, Instant::now());
            }
            () = sessions.changed.notified() => {}
            () = tokio::time::sleep_until(next.unwrap_or(now)), if next.is_some() => {}
        }
    }
}
