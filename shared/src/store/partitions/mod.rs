//! Ownership of partitions: leases, cursors, generations of the stream, worker rows.

mod generations;
mod leases;
mod status;
mod workers;

pub use generations::NewGeneration;
pub use leases::{CursorState, FencingToken, LastMessage, Lease};
pub use status::PartitionState;
pub use workers::LiveWorkers;
