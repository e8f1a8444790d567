//! Contracts between Tidegate's processes, and the code that all of them share. Contains no HTTP
//! and no handlers.
//!
//! ```text
//! domain     ids, kinds, statuses, settings, link codes, messages to Slack
//! secrets    secrets in memory, and their encryption
//! signature  signatures of requests to agents and apps
//! slack      lenient parser of Slack's webhooks
//! stream     JetStream: envelope, partitions and lanes, configuration, reader without gaps
//! runtime    process runtime: settings, logs and traces, shutdown, health check
//! directory  ingest's copy of the connections
//! store      Postgres (feature `store`)
//! operations audited changes by people and programs (feature `store`)
//! ```
//!
//! Imports have one direction: `domain` and `secrets` import nothing, `signature`, `slack`, `stream` and
//! `runtime` only these two, `directory` also `stream`, `store` all of them, and `operations` also
//! `store`.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod domain;
pub mod secrets;
pub mod signature;
pub mod slack;
pub mod stream;
pub mod runtime;
pub mod directory;
#[cfg(feature = "store")]
pub mod store;
#[cfg(feature = "store")]
pub mod operations;
