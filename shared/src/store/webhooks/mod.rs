//! Webhooks: facts for decisions, decisions with their effects, and the commit of intake.

mod batch;
mod dead_letters;
pub(super) mod effects;
mod facts;
mod sealed_payload;

pub use batch::{BatchCommit, CommitOutcome, LastOfBatch};
pub use dead_letters::{DeadLetter, DeadLetterFilter};
pub use effects::{
    AgentRef, Change, Chat, DecidedWebhook, Decision, Effects, GATEWAY_AGENT, GATEWAY_ORG,
    IgnoreReason, NewDelivery, Priority, ProcessedAs, ReplyToChange, WebhookIds, What,
};
pub use facts::{
    ConnectionFacts, ConnectionState, ConversationState, Facts, FactsQuery, ProcessedKey,
};
pub use sealed_payload::SealedPayload;
