//! Dispatch: works the durable queue of deliveries, in order per conversation, fair between queues,
//! limited per agent.
//!
//! Run by `app`. `scheduler` claims due deliveries, `attempt` runs one and returns its outcome,
//! `outcome_recorder` records it, `agents` converts webhooks and answers, `runs` writes answers that
//! agents stream, `content` gives answers Slack's form, `sessions` shows their status. `breaker`, `capacity`, `content` and
//! `retry` are pure. Dispatch meets intake in the table `deliveries` and the outbox in the table
//! `outbox`.

mod agents;
mod attempt;
mod attempt_context;
mod breaker;
mod handler;
mod merging;
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
