//! What Slack should show of agents' sessions, and what it shows. Pure.
//!
//! Only the newest state is sent: what changes while a call must wait takes no call of its own.

use crate::agent_client::Prompt;
use shared::domain::{ChannelId, ConnectionId};
use std::{collections::HashMap, time::Duration};
use tokio::time::Instant;

/// Maximum number of sessions. Further ones show no status.
const SESSIONS_MAX: usize = 8_192;
/// Attempts of a call after the agent has ended.
const ATTEMPTS_MAX: u32 = 5;

/// Conversation as Slack's sessions know it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SessionKey {
    pub connection: ConnectionId,
    pub channel: ChannelId,
    /// First message of the thread.
    pub thread_ts: String,
}

/// Call that changes what Slack shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionCall {
    /// The agent works, with words for what it does; or it does not.
    Status {
        is_working: bool,
        words: String,
    },
    /// Title, with the status of a session that Slack does not know yet.
    Title {
        title: String,
        is_working: bool,
    },
    Prompts(Vec<Prompt>),
}

/// Result of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionCallEnd {
    /// Slack shows it for a time.
    Shown {
        for_time: Duration,
        shows_words: bool,
    },
    /// The call was not made or not answered.
    Retry(Duration),
    Refused,
}

#[derive(Debug)]
struct Session<T> {
    term: T,
    is_working: bool,
    words: String,
    /// Time before which a status is not shown.
    due: Instant,
    /// `None`: unknown.
    shown: Option<bool>,
    shown_words: Option<String>,
    /// Time at which a status that is shown ends by itself.
    renew_at: Option<Instant>,
    title: Option<String>,
    prompts: Option<Vec<Prompt>>,
    attempts: u32,
    is_calling: bool,
}

/// Sessions whose status, title or prompts may have to change. `T` belongs to the attempt.
#[derive(Debug)]
pub struct Board<T>(HashMap<SessionKey, Session<T>>);

impl<T> Default for Board<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Clone> Board<T> {
    /// Shows from `due` on that the agent works. `may_be_shown`: an earlier attempt may have shown
    /// it.
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
            words: "is thinking…".to_owned(),
            due,
            shown: (!may_be_shown).then_some(false),
            shown_words: None,
            renew_at: None,
            title: None,
            prompts: None,
            attempts: 0,
            is_calling: false,
        };
        self.0.insert(key.clone(), session);
    }

    /// The agent no longer works.
    pub fn end(&mut self, key: &SessionKey) {
        if let Some(session) = self.0.get_mut(key) {
            session.is_working = false;
        }
        self.drop_finished(key);
    }

    /// Another attempt, perhaps of another worker, goes on.
    pub fn forget(&mut self, key: &SessionKey) {
        self.0.remove(key);
    }

    /// Slack shows it by itself, for a stream.
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

    /// A message is posted: Slack ends the words of a thread's status, and no session's status.
    pub fn reply_posted(&mut self, key: &SessionKey) {
        if let Some(session) = self.0.get_mut(key)
            && session.shown_words.is_some()
        {
            (session.is_working, session.shown) = (false, Some(false));
        }
    }

    pub fn set_words(&mut self, key: &SessionKey, words: String) {
        if let Some(session) = self.0.get_mut(key) {
            session.words = words;
        }
    }

    pub fn set_title(&mut self, key: &SessionKey, title: String) {
        if let Some(session) = self.0.get_mut(key) {
            (session.title, session.attempts) = (Some(title), 0);
        }
    }

    pub fn set_prompts(&mut self, key: &SessionKey, prompts: Vec<Prompt>) {
        if let Some(session) = self.0.get_mut(key) {
            (session.prompts, session.attempts) = (Some(prompts), 0);
        }
    }

    /// Takes the calls that are due, within the pace of their connection. Returns them, and the time
    /// of the next one.
    pub fn take_calls(
        &mut self,
        now: Instant,
        mut pace: impl FnMut(ConnectionId) -> Result<(), Duration>,
    ) -> (Vec<(SessionKey, T, SessionCall)>, Option<Instant>) {
        let (mut calls, mut next) = (Vec::new(), None::<Instant>);
        for (key, session) in &mut self.0 {
            let Some((due, call)) = session.next_call(now) else { continue };
            let due = match due <= now {
                true => match pace(key.connection) {
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
        end: SessionCallEnd,
        now: Instant,
    ) {
        let Some(session) = self.0.get_mut(key) else { return };
        session.is_calling = false;
        session.attempts += 1;
        let is_final = match end {
            SessionCallEnd::Shown { .. } | SessionCallEnd::Refused => true,
            SessionCallEnd::Retry(wait) => {
                session.due = now + wait;
                session.attempts >= ATTEMPTS_MAX && !session.is_working
            }
        };
        if is_final {
            session.attempts = 0;
            match call {
                SessionCall::Status { is_working, words } => {
                    session.shown = Some(is_working);
                    (session.renew_at, session.shown_words) = match end {
                        SessionCallEnd::Shown { for_time, shows_words } if is_working => {
                            (Some(now + for_time), shows_words.then_some(words))
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
    /// Returns the next call and its time.
    fn next_call(&self, now: Instant) -> Option<(Instant, SessionCall)> {
        if self.is_calling {
            return None;
        }
        let has_other_words =
            self.is_working && self.shown_words.as_ref().is_some_and(|shown| *shown != self.words);
        // A status that nobody saw needs no end.
        let is_wrong = self.shown != Some(self.is_working) || has_other_words;
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
                let (is_working, words) = (self.is_working, self.words.clone());
                Some((at, SessionCall::Status { is_working, words }))
            }
            (None, other) => other.map(|other| (other_at, other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AFTER: Duration = Duration::from_secs(2);
    const SHOWN: SessionCallEnd =
        SessionCallEnd::Shown { for_time: Duration::from_secs(60), shows_words: false };

    fn key() -> SessionKey {
        let connection = ConnectionId::random().expect("randomness");
        SessionKey { connection, channel: "D1".parse().expect("an id"), thread_ts: "1.1".into() }
    }

    fn due(board: &mut Board<()>, now: Instant) -> Vec<SessionCall> {
        let (calls, _) = board.take_calls(now, |_| Ok(()));
        calls.into_iter().map(|(_, (), call)| call).collect()
    }

    fn status(is_working: bool, words: &str) -> SessionCall {
        SessionCall::Status { is_working, words: words.into() }
    }

    #[test]
    fn shows_status_of_slow_agent_only() {
        let (mut board, key, now) = (Board::default(), key(), Instant::now());
        board.begin(&key, (), now + AFTER, false);
        assert!(due(&mut board, now).is_empty());
        board.end(&key);
        assert!(board.0.is_empty(), "a quick agent takes no call");

        board.begin(&key, (), now + AFTER, false);
        let shown = due(&mut board, now + AFTER);
        assert_eq!(shown, [status(true, "is thinking…")]);
        board.end(&key);
        assert!(due(&mut board, now + AFTER).is_empty(), "two calls at once");
        board.finish(&key, shown[0].clone(), SHOWN, now + AFTER);
        let ended = due(&mut board, now + AFTER);
        assert_eq!(ended, [status(false, "is thinking…")]);
        board.finish(&key, ended[0].clone(), SHOWN, now + AFTER);
        assert!(board.0.is_empty());

        // An earlier attempt may have shown it, whose worker died.
        board.begin(&key, (), now + AFTER, true);
        board.end(&key);
        assert_eq!(due(&mut board, now).len(), 1);
    }

    /// States between two calls take no calls of their own.
    #[test]
    fn sends_newest_state_only() {
        let (mut board, key, now) = (Board::default(), key(), Instant::now());
        board.begin(&key, (), now, false);
        let (calls, next) = board.take_calls(now, |_| Err(AFTER));
        assert!(calls.is_empty() && next == Some(now + AFTER));
        for words in ["searches", "reads", "writes"] {
            board.set_words(&key, words.into());
        }
        let calls = due(&mut board, now + AFTER);
        assert_eq!(calls, [status(true, "writes")]);
        let shows_words = true;
        let shown = SessionCallEnd::Shown { for_time: Duration::from_secs(60), shows_words };
        board.finish(&key, calls[0].clone(), shown, now);
        assert!(due(&mut board, now).is_empty());
        board.set_words(&key, "checks".into());
        assert_eq!(due(&mut board, now), [status(true, "checks")]);
        board.finish(&key, status(true, "checks"), shown, now);
        assert_eq!(due(&mut board, now + Duration::from_secs(60)).len(), 1, "it is renewed");
    }

    #[test]
    fn streams_show_status_by_themselves() {
        let (mut board, key, now) = (Board::default(), key(), Instant::now());
        board.begin(&key, (), now + AFTER, false);
        board.shown_by_slack(&key, true, Some(now + AFTER * 10));
        assert!(due(&mut board, now + AFTER).is_empty());
        assert_eq!(due(&mut board, now + AFTER * 10).len(), 1);
        board.shown_by_slack(&key, false, None);
        board.end(&key);
        board.finish(&key, status(true, ""), SessionCallEnd::Retry(AFTER), now);
        assert!(board.0.is_empty());
    }

    #[test]
    fn gives_up_after_failures() {
        let (mut board, key, mut now) = (Board::default(), key(), Instant::now());
        board.begin(&key, (), now + AFTER * 100, false);
        board.set_title(&key, "Plan".into());
        board.set_prompts(&key, Vec::new());
        board.end(&key);
        for _ in 0..ATTEMPTS_MAX {
            let calls = due(&mut board, now);
            let title = SessionCall::Title { title: "Plan".into(), is_working: false };
            assert_eq!(calls, std::slice::from_ref(&title));
            board.finish(&key, title, SessionCallEnd::Retry(AFTER), now);
            now += AFTER;
        }
        assert_eq!(due(&mut board, now), [SessionCall::Prompts(Vec::new())]);
        board.finish(&key, SessionCall::Prompts(Vec::new()), SHOWN, now);
        assert!(board.0.is_empty());
    }
}
