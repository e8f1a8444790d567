//! Pace of calls that write answers, per connection and in this worker. Slack limits them per
//! workspace.
//!
//! A call that must wait is not lost: its content grows meanwhile. When streams may not begin fast
//! enough, an answer is a message that is edited.

use shared::domain::ConnectionId;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::time::Instant;

/// Calls that may come at once after a quiet time.
const BURST: u32 = 10;
/// Time for which a feature is not attempted after Slack refused it.
const UNSUPPORTED_FOR: Duration = Duration::from_secs(3600);
/// Connections in memory above which quiet ones are dropped.
const CONNECTIONS_MAX: usize = 4_096;

/// Kind of call with a limit of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pace {
    /// `chat.startStream`.
    Start,
    /// `chat.appendStream`.
    Append,
    /// Status, title and prompts of sessions.
    Status,
}

/// Feature that Slack may refuse to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Feature {
    Streams,
    /// `agents.sessions.*`: for apps that are declared agents.
    Sessions,
    /// `assistant.threads.*`.
    AssistantThreads,
}

/// Slack's errors that say that a connection lacks a feature.
#[rustfmt::skip]
pub const UNSUPPORTED: [&str; 6] = [
    "feature_disabled", "not_authorized", "not_agent_app", "channel_type_not_supported",
    "missing_scope", "unknown_method",
];

/// Paces of all connections.
#[derive(Debug, Default)]
pub struct Budgets(Mutex<Paces>);

#[derive(Debug, Default)]
struct Paces {
    /// Time at which the calls so far are paid.
    paid_at: HashMap<(ConnectionId, Pace), Instant>,
    unsupported: HashMap<(ConnectionId, Feature), Instant>,
}

impl Budgets {
    /// Takes a call. Returns the time to wait if it would be too early.
    pub fn take(
        &self,
        connection: ConnectionId,
        pace: Pace,
        interval: Duration,
        now: Instant,
    ) -> Result<(), Duration> {
        let mut paces = self.paces();
        if paces.paid_at.len() >= CONNECTIONS_MAX {
            paces.paid_at.retain(|_, paid_at| *paid_at > now);
        }
        let paid_at = paces.paid_at.entry((connection, pace)).or_insert(now);
        match after_call(*paid_at, interval, now) {
            Ok(next) => {
                *paid_at = next;
                Ok(())
            }
            Err(wait) => Err(wait),
        }
    }

    /// Returns whether a connection has a feature, as far as known.
    pub fn has(&self, connection: ConnectionId, feature: Feature, now: Instant) -> bool {
        self.paces().unsupported.get(&(connection, feature)).is_none_or(|until| *until <= now)
    }

    /// Records that Slack refuses a feature to a connection.
    pub fn record_unsupported(&self, connection: ConnectionId, feature: Feature, now: Instant) {
        let mut paces = self.paces();
        paces.unsupported.retain(|_, until| *until > now);
        if paces.unsupported.len() < CONNECTIONS_MAX {
            paces.unsupported.insert((connection, feature), now + UNSUPPORTED_FOR);
        }
    }

    fn paces(&self) -> MutexGuard<'_, Paces> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the time at which the calls are paid after one more, or the time to wait for it.
fn after_call(paid_at: Instant, interval: Duration, now: Instant) -> Result<Instant, Duration> {
    let next = paid_at.max(now) + interval;
    let early = next.saturating_duration_since(now + interval * BURST);
    if early.is_zero() { Ok(next) } else { Err(early) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Within any time, no more calls than its intervals and the burst.
    #[test]
    fn bounds_calls_in_any_time() {
        let interval = Duration::from_millis(100);
        bolero::check!().with_iterations(2_000).with_type::<Vec<u8>>().for_each(|waits| {
            let (start, mut taken) = (Instant::now(), Vec::new());
            let (mut now, mut paid_at) = (start, start);
            for wait in waits {
                now += Duration::from_millis(u64::from(*wait));
                match after_call(paid_at, interval, now) {
                    Ok(next) => {
                        paid_at = next;
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
