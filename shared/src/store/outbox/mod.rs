//! The outbox: messages to Slack, written with the effects that they belong to, sent in the order of their lanes.
//!
//! A message never changes; its lane's row does, for the head, and its channel's row carries the pace. Enqueueing and ending
//! use only the newest version of these rows. The fence of every record is (worker, turn, attempts) in the lane row.

mod claim;
mod enqueue;
mod rate_limits;
mod record;

pub use claim::{ClaimPosition, ClaimedMessages, OutboxMessage, UnreadableMessage};
pub(in crate::store) use enqueue::{SealedMessages, enqueue_messages};
pub use rate_limits::{Limit, LimitSubscription};
pub use record::{SendAmbiguity, SendOutcome, SendRecord};
