//! Intake: reads owned partitions of the stream in order, decides webhooks in batches, and commits
//! effects and cursor in one fenced statement.
//!
//! Run by `app`. Calls no agent and no Slack method, so no organization delays another.
//! `lease_manager` owns partitions and spawns a `partition_reader` for each. `pending` holds
//! messages that are read, `committer` commits them, `batch` decides batch sizes.

mod batch;
mod committer;
mod connection_share;
mod lease_manager;
mod owned_partition;
mod partition_reader;
mod pending;
mod redrive;
mod stream_access;
mod stream_reset;
mod stream_retention;
mod turn;

pub use lease_manager::{LeaseManager, LeaseRenewal};
pub use stream_access::{StreamAccess, StreamProbe};
