//! Command line with which operators migrate, provision, inspect and repair a deployment.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]
#![warn(clippy::print_stderr)] // `eprintln!` panics if the reader has closed the pipe

use clap::{Args, CommandFactory, Parser};
use shared::runtime::config;
use std::process::ExitCode;

mod app_manifest;
mod commands;
mod dev_settings;
mod output;
mod settings;
mod slack_api;
mod stream_reader;

/// Exit codes, as the help of every command prints them.
const EXIT_CODES: &str =
    "Exit codes: 0 success; 1 failure, or missing --yes; 3 nothing found; 64 wrong usage.";

#[derive(Debug, Args)]
struct Cli {
    #[command(subcommand)]
    command: commands::Command,
}

// Not derived: the derived implementation sets `after_help` of the root command only.
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

#[cfg(test)]
mod tests {
    use super::*;
    use shared::secrets::{KeyRing, Secret};
    use std::{any::TypeId, collections::BTreeSet};

    /// Appends the help of a command and its subcommands, without the section "Settings".
    fn append_help(command: &mut clap::Command, text: &mut String) {
        let help = command.render_help().to_string();
        let blocks: Vec<_> =
            help.trim_end().split("\n\n").filter(|block| !block.starts_with("Settings:")).collect();
        let name = command.get_bin_name().unwrap_or("tidegate");
        *text += &format!("## {name}\n\n{}\n\n", blocks.join("\n\n"));
        for subcommand in command.get_subcommands_mut().filter(|c| c.get_name() != "help") {
            append_help(subcommand, text);
        }
    }

    /// Hides the values of environment variables, which depend on the machine.
    fn hide_environment(command: clap::Command) -> clap::Command {
        command.mut_args(|arg| arg.hide_env_values(true)).mut_subcommands(hide_environment)
    }

    #[test]
    fn renders_help() {
        let mut command = hide_environment(Cli::command());
        command.build();
        let mut text = String::new();
        append_help(&mut command, &mut text);
        insta::assert_snapshot!("help", text);
    }

    /// The script that runs commands in a pod refuses secrets as values of exactly these flags.
    #[test]
    fn keeps_secrets_out_of_pods() {
        fn collect(command: &clap::Command, flags: &mut BTreeSet<String>) {
            for arg in command.get_arguments() {
                let kind = arg.get_value_parser().type_id();
                let is_secret = kind == TypeId::of::<Secret>() || kind == TypeId::of::<KeyRing>();
                if is_secret || arg.is_hide_env_values_set() {
                    assert!(arg.get_short().is_none(), "{arg}");
                    flags.insert(format!("--{}", arg.get_long().expect("a flag")));
                }
            }
            command.get_subcommands().for_each(|command| collect(command, flags));
        }
        let mut flags = BTreeSet::new();
        collect(&Cli::command(), &mut flags);
        let script = include_str!("../../kubernetes/tidegate");
        let listed = script.split_once("secret_flags=\"").expect("the list").1;
        let listed = listed.split_once('"').expect("its end").0;
        assert_eq!(flags.into_iter().collect::<Vec<_>>().join(" "), listed);
    }

    /// Every help text begins with an imperative verb and lists the exit codes.
    #[test]
    fn begins_help_with_imperative() {
        fn check(command: &clap::Command) {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            let verb = about.split([' ', ',']).next().unwrap_or_default();
            let is_third_person = verb.ends_with('s') && !verb.ends_with("ss");
            assert!(!verb.is_empty() && !is_third_person, "{}: {about}", command.get_name());
            assert!(command.get_after_help().is_some(), "{}", command.get_name());
            command.get_subcommands().for_each(check);
        }
        check(&Cli::command());
    }
}
