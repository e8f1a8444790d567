//! Desired and shown states of sessions. Pure.
//!
//! Returns the calls that make Slack show the desired state. Only the newest state is sent: changes
//! while a call waits need no calls of their own.

use crate::{agent_client::Prompt, routing::AgentMessage};
use shared::domain::{ChannelId, ConnectionId};
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

/// Maximum number of sessions in memory. Further sessions show no status.
const SESSIONS_MAX: usize = 8_192;
/// Maximum number of attempts of a call after the agent has ended.
const ATTEMPTS_MAX: u32 = 5;

/// Thread that Slack shows as a session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionKey {
    pub connection: ConnectionId,
    pub channel: ChannelId,
    /// Timestamp of the first message of the thread.
    pub thread_ts: String,
}

impl SessionKey {
    /// Returns the key of the thread in which a message is answered.
    pub fn new(connection: ConnectionId, message: &AgentMessage<'_>) -> Self {
        let (channel, thread_ts) = (message.channel.clone(), message.root_ts().to_owned());
        Self { connection, channel, thread_ts }
    }
}

/// Call that changes what Slack shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionCall {
    /// Shows whether the agent works, with a text for its activity.
    Status { is_working: bool, text: String },
    /// Sets the title. If the session does not exist yet, creates it with the status.
    Title { title: String, is_working: bool },
    /// Sets the suggested prompts.
    Prompts(Vec<Prompt>),
}

/// Result of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionCallResult {
    /// Slack shows the state for a time.
    Shown {
        for_time: Duration,
        /// True if Slack shows the text of the status.
        shows_text: bool,
    },
    /// The call was not made or got no response. Retried after this time.
    Retry(Duration),
    Refused,
}

#[derive(Debug)]
struct Session<T> {
    term: T,
    is_working: bool,
    text: String,
    /// Time at which a new status or a retry is due.
    due: Instant,
    /// Status that Slack shows, `None` if unknown.
    shown: Option<bool>,
    shown_text: Option<String>,
    /// Time at which a shown status must be renewed, before it expires.
    renew_at: Option<Instant>,
    title: Option<String>,
    prompts: Option<Vec<Prompt>>,
    attempts: u32,
    is_calling: bool,
}

/// Sessions whose status, title or prompts may have to change. `T` is a value of the attempt that
/// its calls need.
#[derive(Debug)]
pub struct SessionStates<T>(HashMap<SessionKey, Session<T>>);

impl<T> Default for SessionStates<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Clone> SessionStates<T> {
    /// Begins an attempt: from `due` on, the agent is to be shown as working. `may_be_shown` is
    /// true if an earlier attempt may have shown a status.
    pub fn begin(&mut self, key: &SessionKey, term: T, due: Instant, may_be_shown: bool) {
        if let Some(session) = self.0.get_mut(key) {
            (session.term, session.is_working, session.due) = (term, true, due);
            return;
        }
        if self.0.len() >= SESSIONS_MAX {
            return;
        }
        let session = Session {
            term,
            is_working: true,
            text: "is thinking…".to_owned(),
            due,
            shown: (!may_be_shown).then_some(false),
            shown_text: None,
            renew_at: None,
            title: None,
            prompts: None,
            attempts: 0,
            is_calling: false,
        };
        self.0.insert(key.clone(), session);
    }

    /// Ends an attempt: the agent no longer works.
    pub fn end(&mut self, key: &SessionKey) {
        if let Some(session) = self.0.get_mut(key) {
            session.is_working = false;
        }
        self.drop_finished(key);
    }

    /// Removes a session without a call, since another attempt continues it, maybe on another
    /// worker.
    pub fn forget(&mut self, key: &SessionKey) {
        self.0.remove(key);
    }

    /// Records a status that Slack shows by itself, as part of a stream.
    pub fn shown_by_slack(
        &mut self,
        key: &SessionKey,
        is_working: bool,
        renew_at: Option<Instant>,
    ) {
        if let Some(session) = self.0.get_mut(key) {
            session.is_working = is_working;
            (session.shown, session.renew_at) = (Some(is_working), renew_at);
        }
    }

    /// Records that a message was posted. Slack then removes a status set by `assistant.threads`,
    /// but not one set by `agents.sessions`.
    pub fn reply_posted(&mut self, key: &SessionKey) {
        if let Some(session) = self.0.get_mut(key)
            && session.shown_text.is_some()
        {
            (session.is_working, session.shown) = (false, Some(false));
        }
    }

    /// Sets the text of the status.
    pub fn set_status_text(&mut self, key: &SessionKey, text: String) {
        if let Some(session) = self.0.get_mut(key) {
            session.text = text;
        }
    }

    /// Sets the title.
    pub fn set_title(&mut self, key: &SessionKey, title: String) {
        if let Some(session) = self.0.get_mut(key) {
            (session.title, session.attempts) = (Some(title), 0);
        }
    }

    /// Sets the suggested prompts.
    pub fn set_prompts(&mut self, key: &SessionKey, prompts: Vec<Prompt>) {
        if let Some(session) = self.0.get_mut(key) {
            (session.prompts, session.attempts) = (Some(prompts), 0);
        }
    }

    /// Takes the calls that are due and for which `take_budget` succeeds. Returns them, and the
    /// time of the next call. `take_budget` fails with the time to wait.
    pub fn take_calls(
        &mut self,
        now: Instant,
        mut take_budget: impl FnMut(ConnectionId) -> Result<(), Duration>,
    ) -> (Vec<(SessionKey, T, SessionCall)>, Option<Instant>) {
        let (mut calls, mut next) = (Vec::new(), None::<Instant>);
        for (key, session) in &mut self.0 {
            let Some((due, call)) = session.next_call(now) else { continue };
            let due = match due <= now {
                true => match take_budget(key.connection) {
                    Ok(()) => {
                        session.is_calling = true;
                        calls.push((key.clone(), session.term.clone(), call));
                        continue;
                    }
                    Err(wait) => now + wait,
                },
                false => due,
            };
            next = Some(next.map_or(due, |next| next.min(due)));
        }
        (calls, next)
    }

    /// Records the result of a call.
    pub fn finish(
        &mut self,
        key: &SessionKey,
        call: SessionCall,
        end: SessionCallResult,
        now: Instant,
    ) {
        let Some(session) = self.0.get_mut(key) else { return };
        session.is_calling = false;
        session.attempts += 1;
        let is_final = match end {
            SessionCallResult::Shown { .. } | SessionCallResult::Refused => true,
            SessionCallResult::Retry(wait) => {
                session.due = now + wait;
                session.attempts >= ATTEMPTS_MAX && !session.is_working
            }
        };
        if is_final {
            session.attempts = 0;
            match call {
                SessionCall::Status { is_working, text } => {
                    session.shown = Some(is_working);
                    (session.renew_at, session.shown_text) = match end {
                        SessionCallResult::Shown { for_time, shows_text } if is_working => {
                            (Some(now + for_time), shows_text.then_some(text))
                        }
                        _ => (None, None),
                    };
                }
                SessionCall::Title { title, .. } => {
                    session.title.take_if(|newest| *newest == title);
                }
                SessionCall::Prompts(prompts) => {
                    session.prompts.take_if(|newest| *newest == prompts);
                }
            }
        }
        self.drop_finished(key);
    }

    fn drop_finished(&mut self, key: &SessionKey) {
        let is_finished = |session: &Session<T>| {
            let shows = session.is_working || session.shown != Some(false);
            !shows && !session.is_calling && session.title.is_none() && session.prompts.is_none()
        };
        if self.0.get(key).is_some_and(is_finished) {
            self.0.remove(key);
        }
    }
}

impl<T> Session<T> {
    /// Returns the next call and its time, `None` if Slack shows the desired state or a call is in
    /// progress.
    fn next_call(&self, now: Instant) -> Option<(Instant, SessionCall)> {
        if self.is_calling {
            return None;
        }
        let has_other_text =
            self.is_working && self.shown_text.as_ref().is_some_and(|shown| *shown != self.text);
        let is_wrong = self.shown != Some(self.is_working) || has_other_text;
        let status = match (is_wrong, self.renew_at.filter(|_| self.is_working)) {
            (true, _) if self.is_working || self.attempts > 0 => Some(self.due),
            (true, _) => Some(now),
            (false, renew_at) => renew_at,
        };
        let other = match (&self.title, &self.prompts) {
            (Some(title), _) => {
                let (title, is_working) = (title.clone(), self.is_working);
                Some(SessionCall::Title { title, is_working })
            }
            (None, Some(prompts)) => Some(SessionCall::Prompts(prompts.clone())),
            (None, None) => None,
        };
        let other_at = if self.attempts > 0 { self.due } else { now };
        match (status, other) {
            (Some(at), Some(other)) if other_at < at => Some((other_at, other)),
            (Some(at), _) => {
                let (is_working, text) = (self.is_working, self.text.clone());
                Some((at, SessionCall::Status { is_working, text }))
            }
            (None, other) => other.map(|other| (other_at, other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(2);
    const SHOWN: SessionCallResult =
        SessionCallResult::Shown { for_time: Duration::from_secs(60), shows_text: false };

    fn key() -> SessionKey {
        let connection = ConnectionId::random().expect("randomness");
        SessionKey { connection, channel: "D1".parse().expect("an id"), thread_ts: "1.1".into() }
    }

    fn due(states: &mut SessionStates<()>, now: Instant) -> Vec<SessionCall> {
        let (calls, _) = states.take_calls(now, |_| Ok(()));
        calls.into_iter().map(|(_, (), call)| call).collect()
    }

    fn status(is_working: bool, text: &str) -> SessionCall {
        SessionCall::Status { is_working, text: text.into() }
    }

    #[test]
    fn shows_status_of_slow_agent_only() {
        let (mut states, key, now) = (SessionStates::default(), key(), Instant::now());
        states.begin(&key, (), now + AFTER, false);
        assert!(due(&mut states, now).is_empty());
        states.end(&key);
        assert!(states.0.is_empty(), "no call for a fast agent");

        states.begin(&key, (), now + AFTER, false);
        let shown = due(&mut states, now + AFTER);
        assert_eq!(shown, [status(true, "is thinking…")]);
        states.end(&key);
        assert!(due(&mut states, now + AFTER).is_empty(), "one call at a time");
        states.finish(&key, shown[0].clone(), SHOWN, now + AFTER);
        let ended = due(&mut states, now + AFTER);
        assert_eq!(ended, [status(false, "is thinking…")]);
        states.finish(&key, ended[0].clone(), SHOWN, now + AFTER);
        assert!(states.0.is_empty());

        // An earlier attempt may have shown a status before its worker died.
        states.begin(&key, (), now + AFTER, true);
        states.end(&key);
        assert_eq!(due(&mut states, now).len(), 1);
    }

    /// States between two calls need no calls.
    #[test]
    fn sends_newest_state_only() {
        let (mut states, key, now) = (SessionStates::default(), key(), Instant::now());
        states.begin(&key, (), now, false);
        let (calls, next) = states.take_calls(now, |_| Err(AFTER));
        assert!(calls.is_empty() && next == Some(now + AFTER));
        for text in ["searches", "reads", "writes"] {
            states.set_status_text(&key, text.into());
        }
        let calls = due(&mut states, now + AFTER);
        assert_eq!(calls, [status(true, "writes")]);
        let shows_text = true;
        let shown = SessionCallResult::Shown { for_time: Duration::from_secs(60), shows_text };
        states.finish(&key, calls[0].clone(), shown, now);
        assert!(due(&mut states, now).is_empty());
        states.set_status_text(&key, "checks".into());
        assert_eq!(due(&mut states, now), [status(true, "checks")]);
        states.finish(&key, status(true, "checks"), shown, now);
        assert_eq!(due(&mut states, now + Duration::from_secs(60)).len(), 1, "status renewed");
    }

    #[test]
    fn skips_status_of_streams() {
        let (mut states, key, now) = (SessionStates::default(), key(), Instant::now());
        states.begin(&key, (), now + AFTER, false);
        states.shown_by_slack(&key, true, Some(now + AFTER * 10));
        assert!(due(&mut states, now + AFTER).is_empty());
        assert_eq!(due(&mut states, now + AFTER * 10).len(), 1);
        states.shown_by_slack(&key, false, None);
        states.end(&key);
        states.finish(&key, status(true, ""), SessionCallResult::Retry(AFTER), now);
        assert!(states.0.is_empty());
    }

    #[test]
    fn gives_up_after_failures() {
        let (mut states, key, mut now) = (SessionStates::default(), key(), Instant::now());
        states.begin(&key, (), now + AFTER * 100, false);
        states.set_title(&key, "Plan".into());
        states.set_prompts(&key, Vec::new());
        states.end(&key);
        for _ in 0..ATTEMPTS_MAX {
            let calls = due(&mut states, now);
            let title = SessionCall::Title { title: "Plan".into(), is_working: false };
            assert_eq!(calls, std::slice::from_ref(&title));
            states.finish(&key, title, SessionCallResult::Retry(AFTER), now);
            now += AFTER;
        }
        assert_eq!(due(&mut states, now), [SessionCall::Prompts(Vec::new())]);
        states.finish(&key, SessionCall::Prompts(Vec::new()), SHOWN, now);
        assert!(states.0.is_empty());
    }
}
