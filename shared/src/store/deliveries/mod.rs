//! Queue of deliveries: fair claims within agent slots, and ends.
//!
//! Dispatch uses it. Rows of deliveries never change, only the row of their lane. Enqueueing (see
//! `webhooks::batch`) raises `tail`, ending raises `head`, and both use only the newest version of
//! that row. Running lanes and slots name a row of `workers`. The fence of every end is (worker,
//! claim) in the lane row.

mod claim;
mod claimed_delivery;
mod edited;
mod end;
mod health;
mod merge;
mod release;

pub use claim::{ClaimRequest, ClaimedDeliveries, QueueKey};
pub use claimed_delivery::{ClaimedDelivery, DeliveryKey};
pub use edited::EditedMessage;
pub(in crate::store) use edited::cancel_unanswered;
pub use end::{FinishedDelivery, FinishedOutcome, PostponedDelivery};
pub use merge::WaitingDelivery;
