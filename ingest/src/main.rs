//! The `ingest` binary.
//!
//! One thread: ingest scales by running several processes, and publishes that share a thread reach
//! NATS in one write. A thread per core cost ingest and NATS 20 to 25 % more CPU per webhook.

use shared::runtime::{Invocation, config, telemetry};
use std::process::ExitCode;

/// Allocator. A webhook makes dozens of small allocations and a few of several kilobytes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let settings = match config::parse() {
        Ok(Invocation::Run(settings)) => settings,
        Ok(Invocation::Healthcheck(healthcheck)) => return healthcheck.run(),
        Err(code) => return code,
    };
    if let Err(wrong) = telemetry::has_collector() {
        eprintln!("{wrong}");
        return ExitCode::from(config::EX_USAGE);
    }
    ingest::run(settings).await.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}
