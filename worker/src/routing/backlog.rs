//! Limits of a connection's open deliveries, messages and dead letters.

use super::{Webhook, messages};
use shared::store::{Decision, Facts, IgnoreReason};

/// Restricts a decision if the connection has reached its limits. A delivery becomes a dead letter
/// without bytes. Other effects are applied without messages. A dead letter beyond twice the limit of dead letters is ignored.
pub(crate) fn limit_backlog(decision: Decision, webhook: &Webhook<'_>, facts: &Facts) -> Decision {
    let limited = match decision {
        Decision::Apply(effects) if facts.backlog.is_full && effects.delivery.is_some() => {
            Decision::Overflow
        }
        Decision::Apply(mut effects) => {
            effects.drops_messages = facts.backlog.has_max_messages;
            Decision::Apply(effects)
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
