//! Webhooks: facts for decisions, decisions with their effects, and the commit of intake.

mod agent_ref;
mod batch;
mod bindings;
mod changes;
mod columns;
mod dead_letters;
mod effects;
mod facts;
mod fence;
mod sealed_payload;

pub use batch::{BatchCommit, CommitOutcome};
pub(in crate::store) use changes::apply_change;
pub use changes::{Change, ConversationChange, ConversationKey, ReplyForChange};
pub use dead_letters::DeadLetter;
pub use effects::{
    AgentRef, DecidedWebhook, Decision, Effects, GATEWAY_AGENT, GATEWAY_ORG, IgnoreReason,
    NewDelivery, Priority, ProcessedAs, QuestionEffect, WebhookIds, minute_of,
};
pub use facts::{
    BacklogFacts, ConnectionFacts, ConnectionState, ConversationFacts, Facts, FactsQuery,
    ProcessedKey, QuestionFacts,
};
pub use sealed_payload::SealedPayload;
