//! Dispatch: processes the durable queue of deliveries, in order per conversation, fairly between
//! queues, and limited per agent.
//!
//! Run by `app`. `scheduler` claims due deliveries, `attempt` runs one and returns its outcome,
//! `outcome_recorder` records it, `agents` converts webhooks and answers, `runs` writes streamed
//! answers to Slack, `content` converts answers to Slack's format, `sessions` shows the status of
//! agents. `breaker`, `capacity`, `content` and `retry` are pure. Dispatch shares only the table
//! `deliveries` with intake, and the table `outbox` with the outbox.

mod agents;
mod attempt;
mod attempt_context;
mod breaker;
mod handler;
mod merged_messages;
mod metrics;
mod notices;
mod outcome_recorder;
mod payloads;
mod question;
mod capacity;
mod content;
mod retry;
mod runs;
mod scheduler;
mod sessions;
mod tasks;

pub use handler::{
    AnyHandler, Handler, HandlerContext, HandlerOutcome, HandlerSettings, NoHandler,
};
pub use metrics::DispatchMetrics;
pub use runs::RunSettings;
pub use scheduler::run;
