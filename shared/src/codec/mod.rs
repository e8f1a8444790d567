//! What is on the wire: Slack's bodies as Slack sends them, and the envelope in which they are stored.

pub mod slack;
pub mod lifecycle;
pub mod envelope;
mod loose;
