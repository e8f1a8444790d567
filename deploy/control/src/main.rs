//! The `control` binary.

use shared::runtime::{Invocation, config, telemetry};
use std::process::ExitCode;

#[tokio::main]
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
    control::run(settings).await.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}
