//! Takes a webhook from Slack, proves it is Slack's, stores it, says yes. A webhook passes the files in
//! this order:
//!
//! ```text
//! serve      sockets, bounded; patience: how long one may be silent
//! route      HTTP in, HTTP out; every way out is a `Verdict`
//! receive    a body, within its limits
//! gate       the stages below, in order, for each route
//! directory  which connection, from memory
//! verify     bytes, secrets, now → Verified
//! classify   Verified → kind, lane, dedupe key
//! publish    Envelope → Stored
//! reply      the few answers that have to come from a worker in time
//! answer     Verdict → status, body, log level, label: one table
//! metrics, standing   what is counted, and how each app stands with Slack
//! ```
//!
//! Depends on NATS alone. There is no database on this path, and none can be added: the crate `shared` is
//! taken without its feature `store`.

pub mod serve;
pub mod patience;
pub mod route;
pub mod receive;
pub mod gate;
pub mod directory;
pub mod verify;
pub mod classify;
pub mod publish;
pub mod reply;
pub mod answer;
pub mod metrics;
pub mod standing;
pub mod config;
