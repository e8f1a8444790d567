//! Runtime of a process: settings, logs and traces, shutdown, health check.
//!
//! All processes use it. Independent of webhooks and the store.

pub mod config;
pub mod telemetry;
mod command_line;
mod command_output;
mod healthcheck;
mod idle_timeout;
mod log_writer;
mod secret_sources;
mod shutdown;

pub use healthcheck::{Healthcheck, Invocation};
pub use idle_timeout::{IdleTimeoutStream, RequestPhase};
pub use log_writer::DroppedLines;
pub use shutdown::{DrainOutcome, Shutdown};
