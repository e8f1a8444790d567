//! Budgets of calls that write answers, per connection and worker, since Slack limits calls per
//! workspace.
//!
//! Each kind of call is limited by the generic cell rate algorithm. A call that waits loses
//! nothing: more content joins it. If the start of a stream would wait too long, the answer becomes
//! a message that is edited.

use shared::domain::ConnectionId;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Number of calls that a full budget allows at once.
const BURST: u32 = 10;
/// Time for which a feature is not used after Slack refused it.
const UNSUPPORTED_FOR: Duration = Duration::from_secs(3600);
/// Number of budgets in memory above which full ones are evicted.
const CONNECTIONS_MAX: usize = 4_096;

/// Kind of call, each with its own budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CallKind {
    /// `chat.startStream`.
    Start,
    /// `chat.appendStream`.
    Append,
    /// Calls for status, title and prompts of sessions.
    Status,
}

/// Slack feature that a connection may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Feature {
    /// `chat.startStream` and the like.
    Streams,
    /// `agents.sessions.*`, for apps that are declared as agents.
    Sessions,
    /// `assistant.threads.*`.
    AssistantThreads,
}

/// Slack's error codes for a feature that a connection lacks.
#[rustfmt::skip]
pub const UNSUPPORTED: [&str; 6] = [
    "feature_disabled", "not_authorized", "not_agent_app", "channel_type_not_supported",
    "missing_scope", "unknown_method",
];

/// Call budgets and missing features of all connections.
#[derive(Debug, Default)]
pub struct Budgets(Mutex<BudgetState>);

#[derive(Debug, Default)]
struct BudgetState {
    /// Time at which a budget is full again.
    full_at: HashMap<(ConnectionId, CallKind), Instant>,
    /// Time until which a feature is not used.
    unsupported: HashMap<(ConnectionId, Feature), Instant>,
}

impl Budgets {
    /// Takes a call from a budget, which allows one per `interval` on average. Fails with the time
    /// to wait if the budget is empty.
    pub fn take(
        &self,
        connection: ConnectionId,
        kind: CallKind,
        interval: Duration,
        now: Instant,
    ) -> Result<(), Duration> {
        let mut state = self.state();
        if state.full_at.len() >= CONNECTIONS_MAX {
            state.full_at.retain(|_, full_at| *full_at > now);
        }
        let full_at = state.full_at.entry((connection, kind)).or_insert(now);
        match after_call(*full_at, interval, now) {
            Ok(next) => {
                *full_at = next;
                Ok(())
            }
            Err(wait) => Err(wait),
        }
    }

    /// Returns false if Slack recently refused a feature to a connection.
    pub fn has(&self, connection: ConnectionId, feature: Feature, now: Instant) -> bool {
        self.state().unsupported.get(&(connection, feature)).is_none_or(|until| *until <= now)
    }

    /// Records that Slack refused a feature to a connection.
    pub fn record_unsupported(&self, connection: ConnectionId, feature: Feature, now: Instant) {
        let mut state = self.state();
        state.unsupported.retain(|_, until| *until > now);
        if state.unsupported.len() < CONNECTIONS_MAX {
            state.unsupported.insert((connection, feature), now + UNSUPPORTED_FOR);
        }
    }

    fn state(&self) -> MutexGuard<'_, BudgetState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the time at which the budget is full again after a call. Fails with the time to wait.
fn after_call(full_at: Instant, interval: Duration, now: Instant) -> Result<Instant, Duration> {
    let next = full_at.max(now) + interval;
    let early = next.saturating_duration_since(now + interval * BURST);
    if early.is_zero() { Ok(next) } else { Err(early) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any period has at most as many calls as it has intervals, plus the burst.
    #[test]
    fn bounds_call_rate() {
        let interval = Duration::from_millis(100);
        bolero::check!().with_iterations(2_000).with_type::<Vec<u8>>().for_each(|waits| {
            let (start, mut taken) = (Instant::now(), Vec::new());
            let (mut now, mut full_at) = (start, start);
            for wait in waits {
                now += Duration::from_millis(u64::from(*wait));
                match after_call(full_at, interval, now) {
                    Ok(next) => {
                        full_at = next;
                        taken.push(now);
                    }
                    Err(wait) => assert!(wait <= interval),
                }
            }
            for (i, first) in taken.iter().enumerate() {
                for (j, last) in taken.iter().enumerate().skip(i) {
                    let most = last.duration_since(*first).as_millis() / 100 + u128::from(BURST);
                    assert!((j - i + 1) as u128 <= most, "{} calls", j - i + 1);
                }
            }
        });
    }
}
