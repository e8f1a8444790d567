//! Organizations: members, agents, bindings of conversations and link codes.

mod agents;
mod conversations;
mod link_code_attempts;
mod link_codes;
mod members;

pub use agents::{Agent, NewAgent};
pub use conversations::ChatState;
pub(in crate::store) use link_codes::consume_link_code;
pub use link_codes::{ClaimResult, ConsumeClaim, MintedClaim, NewClaim, ReplyTo};
pub use members::NamedAgent;
