//! Wire formats: Slack's bodies, and the envelope in which they are stored.

pub mod slack;
pub mod lifecycle;
pub mod envelope;
mod loose;
