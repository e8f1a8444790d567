//! Webhooks: facts for decisions, decisions with their effects, and the commit of intake.

mod batch;
mod changes;
mod dead_letters;
mod effects;
mod facts;
mod fence;
mod sealed_payload;

pub use batch::{BatchCommit, CommitOutcome, LastOfBatch};
pub(in crate::store) use changes::apply_change;
pub use changes::{Change, Chat, ReplyToChange, What};
pub use dead_letters::{DeadLetter, DeadLetterFilter};
pub use effects::{
    AgentRef, DecidedWebhook, Decision, Effects, GATEWAY_AGENT, GATEWAY_ORG, IgnoreReason,
    NewDelivery, Priority, ProcessedAs, WebhookIds,
};
pub use facts::{
    ConnectionFacts, ConnectionState, ConversationState, Facts, FactsQuery, ProcessedKey,
};
pub use sealed_payload::SealedPayload;
