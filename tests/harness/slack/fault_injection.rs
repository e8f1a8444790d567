//! Faults that tests inject into calls of the Web API: errors, missing, late and truncated answers.
//!
//! A rule selects calls and names their fault. The first rule that matches is applied.

use super::api::Call;
use std::time::Duration;

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Answers `ok: false` with this error.
    ApiError(String),
    /// Answers this status with an HTML page.
    Status(u16),
    /// Answers 429 with the seconds to wait.
    RateLimited(u64),
    /// Never answers.
    Silent,
    /// Delays the answer by this time.
    Slow(Duration),
    /// Closes the connection before the answer.
    Cut,
    /// Closes the connection in the middle of the answer.
    MidBody,
    /// Answers 200 without JSON.
    Garbage,
}

/// A fault and the calls that it applies to.
#[derive(Debug, Clone)]
pub struct FaultRule {
    fault: Fault,
    taken: bool,
    method: Option<String>,
    channel: Option<String>,
    token: Option<String>,
    left: Option<usize>,
}

impl FaultRule {
    /// Returns a rule for every call.
    pub fn new(fault: Fault) -> Self {
        Self { fault, taken: false, method: None, channel: None, token: None, left: None }
    }

    /// Limits the rule to a method (`response_url` is one).
    pub fn on(mut self, method: &str) -> Self {
        self.method = Some(method.to_owned());
        self
    }

    /// Limits the rule to a conversation.
    pub fn in_channel(mut self, channel: &str) -> Self {
        self.channel = Some(channel.to_owned());
        self
    }

    /// Limits the rule to a token.
    pub fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// Limits the rule to a number of calls.
    pub fn times(mut self, times: usize) -> Self {
        self.left = Some(times);
        self
    }

    /// Lets the call take effect before the fault: only its answer is lost.
    pub fn after_effect(mut self) -> Self {
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

/// All rules.
#[derive(Debug, Default)]
pub(super) struct FaultRules(Vec<FaultRule>);

impl FaultRules {
    pub(super) fn add(&mut self, rule: FaultRule) {
        self.0.push(rule);
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// Returns the fault of a call, and whether the call takes effect.
    pub(super) fn inject(&mut self, call: &Call) -> Option<(Fault, bool)> {
        let rule = self.0.iter_mut().find(|rule| rule.fits(call))?;
        rule.left = rule.left.map(|left| left - 1);
        Some((rule.fault.clone(), rule.taken))
    }
}
