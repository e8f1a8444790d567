//! Organizations: members, agents, bindings of conversations, link codes and API keys.

mod agent_headers;
mod agents;
mod api_keys;
mod console_sessions;
mod conversations;
mod idempotency_keys;
mod limits;
mod link_code_attempts;
mod link_codes;
mod members;
mod pages;

pub use agent_headers::{AGENT_HEADERS_COLUMN, AgentHeaders, CurrentHeaders, InvalidHeaderError};
pub use agents::{Agent, NewAgent};
pub use api_keys::{ApiCaller, ApiKeyRecord, NewApiKey};
pub use conversations::{BindingChange, ConversationState};
pub use idempotency_keys::{ClaimResult, IdempotencyClaim};
pub use limits::LimitedKind;
pub(in crate::store) use limits::count_limited;
pub(in crate::store) use link_codes::consume_link_code;
pub use link_codes::{LinkCodeRecord, LinkCodeResult, LinkCodeUse, NewLinkCode, ReplyForLinkCode};
pub use members::NamedAgent;
pub use pages::{BindingRecord, OrganizationRecord};
