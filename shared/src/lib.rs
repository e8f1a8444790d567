//! Contracts between Tidegate's processes, and the code that all of them share. Contains no HTTP
//! and no handlers.
//!
//! ```text
//! types      domain types: ids, kinds, connections, link codes
//! codec      wire formats: Slack's bodies, the envelope
//! partition  partitions and lanes
//! stream     JetStream: subjects, limits, configuration
//! follow     ordered reader of a stream, without gaps
//! directory  ingest's copy of the connections
//! store      Postgres (feature `store`)
//! secrets    secrets in memory, and their encryption
//! config, telemetry, lines, shutdown, healthcheck   process runtime
//! ```
//!
//! Dependencies have one direction: `types ← codec, store, directory`.

pub mod types;
pub mod codec;
pub mod partition;
pub mod stream;
pub mod follow;
pub mod directory;
#[cfg(feature = "store")]
pub mod store;
pub mod secrets;
pub mod config;
pub mod telemetry;
pub mod lines;
pub mod shutdown;
pub mod healthcheck;
