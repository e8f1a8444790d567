//! Dispatch: works the durable queue of deliveries. In order per conversation, fair between connections, bounded per agent:
//! calls the agent, and commits its answer with the end of the delivery.
//!
//! `scheduler` is the loop of a process, `attempt` one call and what follows from it, `agents` what each kind of webhook asks
//! of an agent. `breaker`, `retry` and `places` are pure. The stage meets intake in the table `deliveries` and the outbox in
//! the table `outbox`.

mod agents;
mod attempt;
mod attempt_context;
mod breaker;
mod handler;
mod metrics;
mod notices;
mod outcome_recorder;
mod payloads;
mod capacity;
mod retry;
mod scheduler;

pub use handler::{
    AnyHandler, Handler, HandlerContext, HandlerOutcome, HandlerSettings, NoHandler,
};
pub use metrics::DispatchMetrics;
pub use scheduler::run;
