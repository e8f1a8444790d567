//! `tidegate`: the operator's command line.

use clap::Parser;
use shared::config;
use std::process::ExitCode;

mod app_manifest;
mod commands;
mod directory;
mod output;
mod settings;
mod stream_reader;

/// Exit codes, for people and scripts.
const EXIT_CODES: &str =
    "Exit codes: 0 done; 1 failed, or not confirmed with --yes; 3 nothing matched; 64 wrong usage.";

/// Operates Tidegate: migrate, provision, look, repair.
#[derive(Debug, Parser)]
#[command(name = "tidegate", version, after_help = EXIT_CODES)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
}

#[tokio::main]
async fn main() -> ExitCode {
    match config::parse::<Cli>() {
        Ok(cli) => output::exit_code(cli.command.run().await),
        Err(code) => code,
    }
}
