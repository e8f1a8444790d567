//! Every agreement between two of Tidegate's processes. Nothing here knows HTTP or what a handler does.
//!
//! ```text
//! types      the words: ids, kinds, connections, claims
//! codec      what is on the wire: Slack's bodies, our envelope
//! partition  which slice of the stream, which lane
//! stream     the JetStream agreement: subjects, limits
//! follow     a stream read from a sequence on, without gaps
//! directory  what ingest knows of connections, and how it is told
//! store      Postgres, all of it (feature `store`)
//! secrets    what can't print, and how it rests
//! config, telemetry, lines, shutdown, healthcheck   what every process does the same way
//! ```
//!
//! Dependencies point one way: `types ← codec, store, directory`.

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
