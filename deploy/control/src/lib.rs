//! HTTP API and console with which an operator's backend and people manage Tidegate.
//!
//! ```text
//! api      /v1: keys, roles, rate limits, idempotency, and the routes
//! install  pages and redirects of OAuth
//! console  pages for operators, on a listener of their own
//! server   HTTP/1.1 with timeouts and a graceful shutdown
//! app      wiring: settings, clients, listeners, shutdown
//! ```
//!
//! The process has no persistent state: any number may run at once, and each request may reach a
//! different one. Every change is an operation of `shared::operations`, as for the command line.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod api;
mod app;
mod config;
mod console;
mod cookies;
mod install;
mod metrics;
mod server;

pub use app::run;
pub use config::Config;
pub use server::FINISH_TIMEOUT;
