//! The queue of deliveries: claimed fairly, within agents' slots, and ended.
//!
//! A delivery never changes; its lane's row does, for the head. Enqueueing (see `webhooks::batch`) raises `tail`, ending raises
//! `head`: both use only the newest version of that row. Running lanes and slots name a row of `workers`; the fence of every
//! end is (worker, claim) in the lane row.

mod claim;
mod end;
mod health;
mod release;

pub use claim::{ClaimRequest, ClaimedDeliveries, ClaimedDelivery, DeliveryKey, QueueKey};
pub use end::{FinishedDelivery, FinishedOutcome, PostponedDelivery};
