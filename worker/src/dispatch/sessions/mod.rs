//! Sessions in Slack: status, title and suggested prompts of conversations with agents.
//!
//! An attempt sets the desired state and never waits for calls. A task makes them, within Slack's
//! rate limits: `agents.sessions.*`, or `assistant.threads.*` for apps that are not declared as
//! agents. If Slack refuses both, nothing is shown. Nothing is stored: after the death of a worker
//! the next attempt corrects the status.

mod states;
mod calls;

pub use states::SessionKey;

use super::{attempt_context::AttemptContext, runs::CallKind};
use crate::{
    agent_client::{AgentEvent, Prompt},
    context::WorkerTerm,
};
use calls::{PROCESSING_FOR, call};
use futures_util::{StreamExt, future::join_all, stream::FuturesUnordered};
use states::SessionStates;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::Notify, time::Instant};

/// Duration of an attempt after which the status is shown.
const STATUS_AFTER: Duration = Duration::from_secs(2);
/// Maximum number of concurrent calls.
const CALLS_MAX: usize = 64;
/// Maximum duration of the last calls when the worker stops.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(300);
/// Wait if [`CALLS_MAX`] calls are in progress.
const BUSY_WAIT: Duration = Duration::from_millis(50);
/// Minimum average time between two calls of a connection. Slack allows about 50 per minute.
const STATUS_INTERVAL: Duration = Duration::from_millis(1_500);

/// Sessions of this worker's attempts.
#[derive(Default)]
pub struct Sessions {
    states: Mutex<SessionStates<Arc<WorkerTerm>>>,
    changed: Notify,
}

/// Session of an attempt. Dropping it ends the status, unless another attempt continues the answer.
pub struct ActiveSession {
    sessions: Arc<Sessions>,
    key: SessionKey,
    continues: AtomicBool,
}

impl Sessions {
    /// Begins an attempt. Its status is shown after [`STATUS_AFTER`]. `may_be_shown` is true if
    /// Slack may still show the status of an earlier attempt.
    pub fn begin(
        self: &Arc<Self>,
        key: SessionKey,
        term: &Arc<WorkerTerm>,
        may_be_shown: bool,
    ) -> ActiveSession {
        let due = Instant::now() + STATUS_AFTER;
        self.states().begin(&key, Arc::clone(term), due, may_be_shown);
        self.changed.notify_one();
        ActiveSession { sessions: Arc::clone(self), key, continues: AtomicBool::new(false) }
    }

    fn states(&self) -> MutexGuard<'_, SessionStates<Arc<WorkerTerm>>> {
        self.states.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ActiveSession {
    /// Sets whether another attempt continues the answer, so that the status remains.
    pub fn set_continues(&self, continues: bool) {
        self.continues.store(continues, Ordering::Relaxed);
    }

    /// Applies an event that changes the session.
    pub fn apply(&self, event: &AgentEvent) {
        match event {
            AgentEvent::Status(text) => {
                self.change(|states| states.set_status_text(&self.key, text.clone()));
            }
            AgentEvent::Title(title) => self.set_title(title.clone()),
            AgentEvent::Prompts(prompts) => self.set_prompts(prompts.clone()),
            _ => {}
        }
    }

    /// Sets the title of the session.
    pub fn set_title(&self, title: String) {
        self.change(|states| states.set_title(&self.key, title));
    }

    /// Sets the suggested prompts of the session.
    pub fn set_prompts(&self, prompts: Vec<Prompt>) {
        self.change(|states| states.set_prompts(&self.key, prompts));
    }

    /// Records the start of a stream, for which Slack shows that the agent works.
    pub fn stream_began(&self) {
        let renew_at = Instant::now() + PROCESSING_FOR;
        self.change(|states| states.shown_by_slack(&self.key, true, Some(renew_at)));
    }

    /// Records that Slack ended the status at the end of a stream.
    pub fn ended_by_slack(&self) {
        self.change(|states| states.shown_by_slack(&self.key, false, None));
    }

    /// Records that a message was posted, after which Slack ends the status of a thread.
    pub fn reply_posted(&self) {
        self.change(|states| states.reply_posted(&self.key));
    }

    fn change(&self, change: impl FnOnce(&mut SessionStates<Arc<WorkerTerm>>)) {
        change(&mut self.sessions.states());
        self.sessions.changed.notify_one();
    }
}

impl Drop for ActiveSession {
    fn drop(&mut self) {
        match self.continues.load(Ordering::Relaxed) {
            true => self.change(|states| states.forget(&self.key)),
            false => self.change(|states| states.end(&self.key)),
        }
    }
}

/// Makes the calls that are due when the worker stops, within [`FLUSH_TIMEOUT`].
pub async fn flush(context: &AttemptContext) {
    let (due, _) = context.sessions.states().take_calls(Instant::now(), |_| Ok(()));
    let calls = due.iter().map(|(key, term, wanted)| call(context, term, key, wanted));
    let _ = tokio::time::timeout(FLUSH_TIMEOUT, join_all(calls)).await;
}

/// Makes calls when they are due. Never returns.
pub async fn run_calls(context: Arc<AttemptContext>) {
    let context = &*context;
    let sessions = &context.sessions;
    let mut calls = FuturesUnordered::new();
    loop {
        let now = Instant::now();
        let (mut due, mut next) = (Vec::new(), None);
        if calls.len() < CALLS_MAX {
            let mut room = CALLS_MAX - calls.len();
            (due, next) = sessions.states().take_calls(now, |connection| {
                if room == 0 {
                    return Err(BUSY_WAIT);
                }
                context.budgets.take(connection, CallKind::Status, STATUS_INTERVAL, now)?;
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
                sessions.states().finish(&key, wanted, end, Instant::now());
            }
            () = sessions.changed.notified() => {}
            () = tokio::time::sleep_until(next.unwrap_or(now)), if next.is_some() => {}
        }
    }
}
