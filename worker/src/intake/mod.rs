//! Intake: reads each owned partition of the stream in order, decides its webhooks in batches, and commits effects and
//! cursor in one fenced statement. Makes no outside call but reading the stream, so nothing of one tenant delays another's.
//!
//! `lease_manager` owns partitions and the row of this process; a `partition_reader` works one partition until it is lost
//! or given back. `batch` is the pure part: what goes into a batch, and what follows when Postgres refuses one.

mod batch;
mod committer;
mod lease_manager;
mod owned_partition;
mod partition_reader;
mod pending;
mod redrive;
mod stream_reset;
mod stream_retention;

pub use lease_manager::{LeaseManager, LeaseRenewal};
