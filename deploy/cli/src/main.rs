//! `tidegate`: the operator's command line.

use clap::{Args, CommandFactory, Parser};
use shared::config;
use std::process::ExitCode;

mod app_manifest;
mod commands;
mod directory;
mod output;
mod settings;
mod stream_reader;

/// Exit codes, which the help of every command prints.
const EXIT_CODES: &str =
    "Exit codes: 0 success; 1 failure, or missing --yes; 3 nothing found; 64 wrong usage.";

#[derive(Debug, Args)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
}

// Written by hand: the derived implementation sets `after_help` of the root alone.
impl CommandFactory for Cli {
    fn command() -> clap::Command {
        let root = clap::Command::new("tidegate").version(env!("CARGO_PKG_VERSION"));
        with_exit_codes(Self::augment_args(root).about("Operate Tidegate"))
    }

    fn command_for_update() -> clap::Command {
        Self::command()
    }
}

impl Parser for Cli {}

fn with_exit_codes(command: clap::Command) -> clap::Command {
    command.after_help(EXIT_CODES).mut_subcommands(with_exit_codes)
}

#[tokio::main]
async fn main() -> ExitCode {
    match config::parse::<Cli>() {
        Ok(cli) => output::exit_code(cli.command.run().await),
        Err(code) => code,
    }
}
