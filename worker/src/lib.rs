//! Reads the stream, hands webhooks to agents, sends to Slack: three short durable stages that meet in Postgres.
//!
//! ```text
//! intake     a partition in order, in batches: decide, commit effects and cursor. No outside call.
//! dispatch   the queue of deliveries: in order per conversation, fair, bounded per agent: call the agent, commit its answer
//! outbox     messages to Slack: in order per conversation, paced per channel and method: send, record the result
//! ```
//!
//! `routing` is the pure function by which intake decides. `maintenance` is what happens beside the way. A team with its
//! own code in place of agents implements [`Handler`] and calls [`run`]; `worker/examples/own_handler.rs` does.

mod agent_client;
mod app;
mod batcher;
mod config;
mod connection_cache;
mod context;
mod decider;
mod dispatch;
mod intake;
mod maintenance;
mod metrics;
mod outbox;
mod probe;
mod routing;
mod slack;
mod usage;
mod worker_lease;

pub use app::{run, run_with_probe};
pub use config::{BEYOND_GRACE, Config};
pub use dispatch::{Handler, HandlerContext, HandlerOutcome, NoHandler};
pub use probe::{Probe, Stage};
