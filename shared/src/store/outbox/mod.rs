//! Outbox: messages to Slack, committed with their effects, sent in the order of their lanes.
//!
//! Rows of messages never change. The row of their lane has the head, the row of their channel the
//! time of the next send. Enqueueing and ending use only the newest version of these rows. The
//! fence of every record is (worker, turn, attempts) in the lane row.

mod claim;
mod enqueue;
mod message;
mod rate_limits;
mod record;

pub use claim::{ClaimPosition, ClaimedMessages};
pub(in crate::store) use enqueue::{
    COLUMN as OUTBOX_REQUEST_COLUMN, SealedMessages, enqueue_messages,
};
pub use message::{OutboxMessage, UnreadableMessage};
pub use rate_limits::{RateLimitSubscription, SlackRateLimit};
pub use record::{SendAmbiguity, SendOutcome, SendRecord};
