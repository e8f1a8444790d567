//! Runs the `worker` binary: dispatches stored webhooks to agents.

use std::process::ExitCode;

/// General-purpose allocators are slow for webhooks: dozens of small allocations, made on one
/// thread and freed on another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    worker::run(None::<worker::NoHandler>)
}
