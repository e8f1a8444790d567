//! Trouble that a test makes: calls that are refused, not answered, or answered only after the connection is gone.
//!
//! In: which calls, what goes wrong, how often. Out: for each call, whether it is one of them. The first trouble that fits is
//! the one that happens.

use super::api::Call;
use std::time::Duration;

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Slack says `ok: false` and this word.
    Says(String),
    /// Slack answers with this status and a page for people.
    Status(u16),
    /// Slack answers 429, to come back after so many seconds.
    RateLimited(u64),
    /// Nothing is answered until the caller has had enough.
    Silent,
    /// The answer takes this long.
    Slow(Duration),
    /// The connection is closed before an answer.
    Cut,
    /// The connection is closed in the middle of the answer.
    MidBody,
    /// The answer is 200, and no JSON.
    Garbage,
}

/// A fault, and where it strikes.
#[derive(Debug, Clone)]
pub struct Trouble {
    fault: Fault,
    taken: bool,
    method: Option<String>,
    channel: Option<String>,
    token: Option<String>,
    left: Option<usize>,
}

impl Trouble {
    /// This, for every call, for ever.
    pub fn new(fault: Fault) -> Self {
        Self { fault, taken: false, method: None, channel: None, token: None, left: None }
    }

    /// Only this method (`response_url` is one).
    pub fn on(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Only this conversation.
    pub fn in_channel(mut self, channel: &str) -> Self {
        self.channel = Some(channel.to_owned());
        self
    }

    /// Only this token.
    pub fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Only the next so many calls.
    pub fn times(mut self, times: usize) -> Self {
        self.left = Some(times);
        self
    }

    /// The call takes effect all the same: only its answer is lost.
    pub fn after_the_fact(mut self) -> Self {
        self.taken = true;
        self
    }

    fn fits(&self, call: &Call) -> bool {
        let is = |wanted: &Option<String>, there: &str| wanted.as_ref().is_none_or(|w| w == there);
        self.left != Some(0)
            && is(&self.method, &call.method)
            && is(&self.channel, &call.channel)
            && is(&self.token, call.token.as_deref().unwrap_or_default())
    }
}

/// All the trouble there is.
#[derive(Debug, Default)]
pub(super) struct Troubles(Vec<Trouble>);

impl Troubles {
    pub(super) fn add(&mut self, trouble: Trouble) {
        self.0.push(trouble);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// What goes wrong with this call, and whether it takes effect all the same.
    pub(super) fn strike(&mut self, call: &Call) -> Option<(Fault, bool)> {
        let trouble = self.0.iter_mut().find(|trouble| trouble.fits(call))?;
        trouble.left = trouble.left.map(|left| left - 1);
        Some((trouble.fault.clone(), trouble.taken))
    }
}
