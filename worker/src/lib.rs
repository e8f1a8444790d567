//! Processes stored webhooks in three durable stages, connected by tables in Postgres.
//!
//! * `intake` reads a partition in order and commits decisions and cursor in batches.
//! * `dispatch` claims deliveries, fairly per queue and in order per conversation, calls the agent
//!   and commits the answer.
//! * `outbox` sends messages to Slack, in order per conversation, within Slack's rate limits.
//!
//! `routing` is the pure function that decides webhooks for intake. `maintenance` runs periodic
//! tasks. A team that has its own handler instead of agents implements [`Handler`] and calls
//! [`run`]; see `worker/examples/own_handler.rs`.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod agent_client;
#[cfg(test)]
mod answer_generator;
mod app;
mod batcher;
mod claim_pacer;
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
mod readiness;
mod routing;
mod slack;
mod usage;
mod worker_lease;

pub use app::{run, run_with_probe};
pub use config::{BEYOND_GRACE, Config};
pub use dispatch::{Handler, HandlerContext, HandlerOutcome, NoHandler};
pub use probe::{Probe, Stage};
