//! Limits of a connection's open deliveries and dead letters.

use super::{Webhook, messages};
use shared::store::{Decision, Facts, IgnoreReason};

/// Returns the decision within the limits that the connection has reached. A delivery becomes a
/// dead letter without bytes; what would become a dead letter beyond twice their limit is ignored.
pub(crate) fn limit_backlog(decision: Decision, webhook: &Webhook<'_>, facts: &Facts) -> Decision {
    let limited = match decision {
        Decision::Apply(effects) if facts.backlog.is_full && effects.delivery.is_some() => {
            Decision::Overflow
        }
        decision => decision,
    };
    match limited {
        Decision::Overflow | Decision::DeadLetter { .. } if facts.backlog.ignores => {
            let addressed = messages::is_addressed(webhook, None, false);
            Decision::Ignore { reason: IgnoreReason::TooManyDeadLetters, addressed }
        }
        limited => limited,
    }
}
