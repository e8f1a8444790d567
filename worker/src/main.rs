//! `worker`: handles stored webhooks, with agents.

use std::process::ExitCode;
use worker::{handle::AskAgents, start};

/// A webhook is some dozens of small allocations, made on one thread and freed on another.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    start::main(AskAgents)
}
