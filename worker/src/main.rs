//! Runs the `worker` binary: dispatches stored webhooks to agents.

use std::process::ExitCode;

/// Allocator of the process. The system's allocator is slow for webhooks: dozens of small
/// allocations, made on one thread and freed on another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    worker::run(None::<worker::NoHandler>)
}
