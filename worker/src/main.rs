//! `worker`: handles stored webhooks, with agents.

use std::process::ExitCode;

/// A webhook is some dozens of small allocations, made on one thread and freed on another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    worker::run(None::<worker::NoHandler>)
}
