//! Decision after a failed attempt: retry or dead letter. Pure.

use crate::agent_client::FailureKind;
use shared::domain::AgentMode;
use std::time::Duration;

/// Number of faults after which a delivery that the agent refuses becomes a dead letter.
const REFUSALS_MAX: i32 = 3;
/// Number of faults after which any other delivery becomes a dead letter.
const FAULTS_MAX: i32 = 10;
/// Number of crashes (attempts that panicked, or whose process died) after which a delivery becomes
/// a dead letter. Five, since an outage can end several processes in a row. The wait after the
/// crash of a process grows (0, 1, 4, 16 s).
pub const CRASHES_MAX: i32 = 5;
/// Wait after the first attempt, doubled for each further one.
const BACKOFF_BASE: Duration = Duration::from_millis(200);
/// Maximum wait before jitter, unless the agent asks for a longer one.
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Maximum wait that an agent can request with `Retry-After`.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);
/// Default time for which deliveries to agents in mode `reply` are retried.
const RETRY_REPLY_FOR: Duration = Duration::from_secs(3600);
/// Default time for which deliveries to agents in mode `forward` are retried.
const RETRY_FORWARD_FOR: Duration = Duration::from_secs(24 * 3600);

/// Failed attempt of a delivery.
#[derive(Debug, Clone, Copy)]
pub struct Failure {
    pub kind: FailureKind,
    /// Number of attempts, including this one.
    pub attempts: i32,
    /// Number of earlier faults, see [`Failure::is_fault`].
    pub faults: i32,
    /// Time since the first attempt.
    pub age: Duration,
    /// Maximum age of a delivery that is retried.
    pub retry_for: Duration,
    /// Wait that the agent requested.
    pub retry_after: Option<Duration>,
    /// True if the agent answered other deliveries since the first attempt.
    pub has_answered_others: bool,
}

/// Decision after a failure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AfterFailure {
    /// Retry after this time.
    Retry(Duration),
    /// Move the delivery to the dead letters, for this reason.
    DeadLetter(&'static str),
}

impl Failure {
    /// Returns whether the delivery itself caused the failure: the agent refused it, gave an
    /// unusable answer, or failed while it answered other deliveries.
    pub fn is_fault(&self) -> bool {
        match self.kind {
            FailureKind::Refused | FailureKind::Unusable => true,
            FailureKind::Failing => self.has_answered_others,
            FailureKind::Unavailable => false,
        }
    }
}

/// Returns the decision after a failure. `jitter` is in 0.0..1.0.
pub fn after_failure(failure: &Failure, jitter: f64) -> AfterFailure {
    let faults = failure.faults + i32::from(failure.is_fault());
    let (faults_max, reason) = match failure.kind {
        FailureKind::Refused => (REFUSALS_MAX, "the agent refused the webhook"),
        FailureKind::Unusable => (FAULTS_MAX, "the agent's answers were unusable"),
        FailureKind::Failing if failure.is_fault() => {
            (FAULTS_MAX, "the agent failed but answered others")
        }
        FailureKind::Failing | FailureKind::Unavailable => {
            (i32::MAX, "the agent was unavailable for too long")
        }
    };
    if faults >= faults_max || failure.age > failure.retry_for {
        return AfterFailure::DeadLetter(reason);
    }
    let wait = backoff(failure.attempts, jitter);
    let asked = failure.retry_after.map(|asked| asked.min(RETRY_AFTER_MAX));
    AfterFailure::Retry(asked.map_or(wait, |asked| wait.max(asked)))
}

/// Returns the time for which deliveries of an agent are retried: its setting, or the default of
/// its mode.
pub fn retry_for(setting: Option<Duration>, mode: AgentMode) -> Duration {
    setting.unwrap_or(match mode {
        AgentMode::Reply => RETRY_REPLY_FOR,
        AgentMode::Forward => RETRY_FORWARD_FOR,
    })
}

/// Returns the wait before the next attempt. `jitter` in 0.0..1.0 adds up to a quarter, so that
/// lanes that failed together are not retried together.
pub fn backoff(attempts: i32, jitter: f64) -> Duration {
    let doublings = attempts.clamp(1, 16).unsigned_abs() - 1;
    let wait = BACKOFF_BASE.saturating_mul(2_u32.saturating_pow(doublings)).min(BACKOFF_MAX);
    wait.mul_f64(1.0 + jitter.clamp(0.0, 1.0) / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(kind: FailureKind, faults: i32) -> Failure {
        let (age, retry_for) = (Duration::from_secs(10), Duration::from_secs(3600));
        let (attempts, retry_after, has_answered_others) = (faults + 1, None, false);
        Failure { kind, attempts, faults, age, retry_for, retry_after, has_answered_others }
    }

    #[test]
    fn limits_each_kind_of_failure() {
        use FailureKind::{Failing, Refused, Unavailable, Unusable};
        let gives_up =
            |failure| matches!(after_failure(&failure, 0.0), AfterFailure::DeadLetter(_));
        for (failure, given_up) in [
            (failure(Refused, 1), false),
            (failure(Refused, 2), true),
            (failure(Unusable, 8), false),
            (failure(Unusable, 9), true),
            (failure(Unavailable, 500), false),
            (Failure { has_answered_others: true, ..failure(Unavailable, 500) }, false),
            (failure(Failing, 500), false),
            (Failure { has_answered_others: true, ..failure(Failing, 8) }, false),
            (Failure { has_answered_others: true, ..failure(Failing, 9) }, true),
            (Failure { age: Duration::from_secs(3601), ..failure(Unavailable, 0) }, true),
            (Failure { age: Duration::from_secs(3601), ..failure(Unusable, 0) }, true),
        ] {
            assert_eq!(gives_up(failure), given_up, "{failure:?}");
        }
    }

    /// The reason names the failure also when the age of the delivery decides.
    #[test]
    fn names_failure_of_late_attempt() {
        use FailureKind::{Failing, Refused, Unavailable, Unusable};
        for (kind, reason) in [
            (Refused, "the agent refused the webhook"),
            (Unusable, "the agent's answers were unusable"),
            (Failing, "the agent was unavailable for too long"),
            (Unavailable, "the agent was unavailable for too long"),
        ] {
            let late = Failure { age: Duration::from_secs(3601), ..failure(kind, 0) };
            assert_eq!(after_failure(&late, 0.0), AfterFailure::DeadLetter(reason));
        }
    }

    #[test]
    fn honors_retry_after() {
        let asked = |seconds| {
            let retry_after = Some(Duration::from_secs(seconds));
            after_failure(&Failure { retry_after, ..failure(FailureKind::Unavailable, 0) }, 0.0)
        };
        assert_eq!(asked(7), AfterFailure::Retry(Duration::from_secs(7)));
        assert_eq!(asked(0), AfterFailure::Retry(BACKOFF_BASE));
        assert_eq!(asked(86_400), AfterFailure::Retry(RETRY_AFTER_MAX));
    }

    #[test]
    fn bounds_backoff() {
        bolero::check!().with_iterations(10_000).with_type::<(i32, u8)>().for_each(
            |&(attempts, jitter)| {
                let jitter = f64::from(jitter) / 256.0;
                let wait = backoff(attempts, jitter);
                assert!(wait >= BACKOFF_BASE && wait <= BACKOFF_MAX.mul_f64(1.25));
                assert!(backoff(attempts.saturating_add(1), jitter) >= wait);
            },
        );
    }
}
