//! The `ingest` binary.
//!
//! One thread: ingest scales by running several processes, and publishes that share a thread reach
//! NATS in one write. A thread per core cost ingest and NATS 20 to 25 % more CPU per webhook.

use shared::{config, healthcheck::Asked};
use std::process::ExitCode;

/// A webhook makes dozens of small allocations and a few of some kilobytes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config = match config::parse() {
        Ok(Asked::Run(config)) => config,
        Ok(Asked::Healthcheck(healthcheck)) => return healthcheck.run(),
        Err(code) => return code,
    };
    ingest::run(config).await.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}
