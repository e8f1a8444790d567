//! Rate limits of Slack, per method and workspace, per method and channel, or per workspace.
//!
//! There are no limits until a test sets [`Limit`]s. [`Limit::of_slack`] returns those of the real
//! Slack.

use super::api::Call;
use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

/// Maximum number of calls in a period, per workspace or channel.
#[derive(Debug, Clone)]
pub struct Limit {
    method: Option<String>,
    each: Each,
    burst: usize,
    per: Duration,
}

#[derive(Debug, Clone, Copy)]
enum Each {
    Workspace,
    Channel,
}

impl Limit {
    /// Returns a limit of a method in each workspace.
    pub fn method(method: &str, burst: usize, per: Duration) -> Self {
        Self { method: Some(method.to_owned()), each: Each::Workspace, burst, per }
    }

    /// Returns a limit of a method in each conversation.
    pub fn channel(method: &str, burst: usize, per: Duration) -> Self {
        Self { each: Each::Channel, ..Self::method(method, burst, per) }
    }

    /// Returns a limit of all methods in each workspace.
    pub fn workspace(burst: usize, per: Duration) -> Self {
        Self { method: None, each: Each::Workspace, burst, per }
    }

    /// Returns limits like those that Slack documents for posting: one message per second in a
    /// channel, with a burst of three, and a few hundred per minute in a workspace.
    pub fn of_slack() -> Vec<Self> {
        const MINUTE: Duration = Duration::from_secs(60);
        vec![
            Self::channel("chat.postMessage", 3, Duration::from_secs(3)),
            Self::method("chat.postMessage", 300, MINUTE),
            Self::method("chat.update", 50, MINUTE),
            Self::method("chat.postEphemeral", 100, MINUTE),
            Self::method("conversations.history", 50, MINUTE),
            Self::method("conversations.replies", 50, MINUTE),
            Self::method("oauth.v2.access", 600, MINUTE),
        ]
    }

    fn key(&self, call: &Call) -> Option<String> {
        if self.method.as_ref().is_some_and(|method| *method != call.method) {
            return None;
        }
        Some(match self.each {
            Each::Workspace => call.team.clone(),
            Each::Channel => format!("{} {}", call.team, call.channel),
        })
    }
}

/// All limits, with the times of counted calls by workspace or channel.
#[derive(Debug, Default)]
pub(super) struct Limits(Vec<(Limit, HashMap<String, Vec<SystemTime>>)>);

impl Limits {
    pub(super) fn set(&mut self, limits: Vec<Limit>) {
        self.0 = limits.into_iter().map(|limit| (limit, HashMap::new())).collect();
    }

    /// Counts a call, or returns the seconds to wait.
    pub(super) fn take(&mut self, call: &Call, now: SystemTime) -> Result<(), u64> {
        let mut wait = Duration::ZERO;
        for (limit, used) in &mut self.0 {
            let Some(used) = limit.key(call).and_then(|key| used.get_mut(&key)) else { continue };
            used.retain(|at| *at + limit.per > now);
            if used.len() >= limit.burst {
                let free = used[used.len() - limit.burst] + limit.per;
                wait = wait.max(free.duration_since(now).unwrap_or_default());
            }
        }
        if wait > Duration::ZERO {
            return Err(wait.as_secs() + 1);
        }
        for (limit, used) in &mut self.0 {
            if let Some(key) = limit.key(call) {
                used.entry(key).or_default().push(now);
            }
        }
        Ok(())
    }
}
