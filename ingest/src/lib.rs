//! Takes a webhook from Slack, proves it is Slack's, stores it, says yes. A webhook passes the files in
//! this order:
//!
//! ```text
//! route      HTTP in, HTTP out; every way out is a `Verdict`
//! directory  which connection, from memory
//! verify     bytes, secrets, now → Verified
//! classify   Verified → kind, lane, dedupe key
//! publish    Envelope → Stored
//! answer     Verdict → status, body, log level, label: one table
//! ```
//!
//! Depends on NATS alone. There is no database on this path, and none can be added: the crate `shared` is
//! taken without its feature `store`.

pub mod route;
pub mod directory;
pub mod verify;
pub mod classify;
pub mod publish;
pub mod answer;
pub mod serve;
pub mod config;
