//! Parser of arguments and environment variables, and its error messages.
//!
//! A setting is a flag and an environment variable. An error message is one sentence with the name
//! of the setting and what is expected. It never contains the value, which may be a secret.

use clap::{
    ArgMatches, Parser,
    error::{ContextKind, ContextValue, ErrorKind},
    parser::ValueSource,
};
use std::{
    ffi::{OsStr, OsString},
    io::Write,
    process::ExitCode,
};

/// Exit code for wrong settings.
pub const EX_USAGE: u8 = 64;

/// Parses the settings. On failure prints one sentence that names the wrong setting and returns
/// [`EX_USAGE`]. Without a command prints the help and returns [`EX_USAGE`].
pub fn parse<C: Parser>() -> Result<C, ExitCode> {
    // A reader may have closed the pipe, as `head` does. `print!` would panic.
    parse_from(std::env::args_os()).map_err(|stop| match stop {
        SettingsError::Help(text) => {
            let _ = write!(std::io::stdout(), "{text}");
            ExitCode::SUCCESS
        }
        SettingsError::NoCommand(help) => {
            let _ = write!(std::io::stderr(), "{help}");
            ExitCode::from(EX_USAGE)
        }
        SettingsError::Invalid(sentence) => {
            let _ = writeln!(std::io::stderr(), "{sentence}");
            ExitCode::from(EX_USAGE)
        }
    })
}

/// Reason why [`parse_from`] returns no settings.
#[derive(Debug)]
pub enum SettingsError {
    /// Help or version was requested.
    Help(clap::builder::StyledStr),
    /// A command is missing. The help lists the commands.
    NoCommand(clap::builder::StyledStr),
    /// A setting is wrong. The sentence names it.
    Invalid(String),
}

/// Parses the given arguments.
pub fn parse_from<C: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<C, SettingsError> {
    let mut command = C::command();
    command.build();
    let args: Vec<OsString> = args.into_iter().collect();
    let invoked = invoked_command(&command, &args);
    let stop = |error: clap::Error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => SettingsError::Help(error.render()),
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            SettingsError::NoCommand(error.render())
        }
        _ => SettingsError::Invalid(describe(invoked, &error)),
    };
    let matches = command.clone().try_get_matches_from(&args).map_err(stop)?;
    if let Some(setting) = literal_secret(&command, &matches) {
        return Err(SettingsError::Invalid(format!(
            "{setting} is an argument, which other users can read; \
             set the environment variable, or write file:<path>"
        )));
    }
    C::from_arg_matches(&matches).map_err(stop)
}

/// Returns the subcommand that the arguments name.
fn invoked_command<'c>(command: &'c clap::Command, args: &[OsString]) -> &'c clap::Command {
    let names = args.iter().skip(1).filter(|arg| !arg.to_string_lossy().starts_with('-'));
    names.fold(command, |command, name: &OsString| {
        command.find_subcommand(name as &OsStr).unwrap_or(command)
    })
}

/// Returns the name of a setting with hidden values that an argument contains in plaintext.
fn literal_secret(command: &clap::Command, matches: &ArgMatches) -> Option<String> {
    // A server address without a user name is not a secret.
    let is_public = |text: &str| {
        ["file:", "exec:"].iter().any(|prefix| text.starts_with(prefix))
            || text.contains("://") && !text.contains('@')
    };
    let own = command.get_arguments().filter(|arg| arg.is_hide_env_values_set()).find(|arg| {
        let id = arg.get_id().as_str();
        let values = matches.get_raw(id).into_iter().flatten();
        matches.value_source(id) == Some(ValueSource::CommandLine)
            && values.into_iter().any(|value| !value.to_str().is_some_and(is_public))
    });
    let name = |arg: &clap::Arg| arg.get_env().map(|name| name.to_string_lossy().into_owned());
    own.and_then(name).or_else(|| {
        let (subcommand, matches) = matches.subcommand()?;
        literal_secret(command.find_subcommand(subcommand)?, matches)
    })
}

fn describe(command: &clap::Command, error: &clap::Error) -> String {
    let context = |kind| error.get(kind).map(ContextValue::to_string).unwrap_or_default();
    let help_command = format!("{} --help", command.get_bin_name().unwrap_or(command.get_name()));
    match error.kind() {
        ErrorKind::MissingRequiredArgument => {
            let missing = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::Strings(args)) => args.first().cloned().unwrap_or_default(),
                other => other.map(ToString::to_string).unwrap_or_default(),
            };
            let (name, help) = name_and_help(command, &missing);
            match missing.starts_with('<') {
                true => format!("argument {name} is missing: {help}; see {help_command}"),
                false => format!("{name} is not set: {help}"),
            }
        }
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let (name, help) = name_and_help(command, &context(ContextKind::InvalidArg));
            // The value is omitted because it may be a secret.
            let why = match (error.get(ContextKind::ValidValue), std::error::Error::source(error)) {
                (Some(ContextValue::Strings(choices)), _) if !choices.is_empty() => {
                    format!(" (expected {})", choices.join(" or "))
                }
                (_, Some(source)) => format!(" ({source})"),
                _ => String::new(),
            };
            format!("{name} is malformed{why}: {help}")
        }
        _ => {
            let text = error.to_string();
            let text = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
            let similar = [ContextKind::SuggestedSubcommand, ContextKind::SuggestedArg]
                .into_iter()
                .find_map(|kind| match error.get(kind)? {
                    ContextValue::Strings(all) => all.first().cloned(),
                    ContextValue::String(one) => Some(one.clone()),
                    _ => None,
                });
            let similar = similar.map(|name| format!("; similar: {name}")).unwrap_or_default();
            format!("{text}{similar}; see {help_command}")
        }
    }
}

/// Returns the name and the help of an argument that clap shows as `--flag <VALUE>` or `<VALUE>`.
/// The name is the environment variable, if there is one: operators know that.
fn name_and_help(command: &clap::Command, shown: &str) -> (String, String) {
    let name = shown.split_whitespace().next().unwrap_or(shown).trim_end_matches("...");
    let found = command.get_arguments().find(|argument| match name.strip_prefix("--") {
        Some(flag) => argument.get_long() == Some(flag),
        None => argument.is_positional() && argument.to_string().trim_end_matches("...") == name,
    });
    let variable = found.and_then(|a| a.get_env()).map(|v| v.to_string_lossy().into_owned());
    let help = found.and_then(|a| a.get_help()).map(ToString::to_string).unwrap_or_default();
    (variable.unwrap_or_else(|| name.to_owned()), help)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::config::{NatsConfig, TelemetryConfig, parse_duration};
    use std::time::Duration;

    #[derive(Debug, Parser)]
    struct Probe {
        #[command(flatten)]
        nats: NatsConfig,
        #[command(flatten)]
        telemetry: TelemetryConfig,
        /// Lifetime of a lease.
        #[arg(long, env = "PROBE_TTL", default_value = "3s", value_parser = parse_duration)]
        ttl: Duration,
    }

    fn parse_error(args: &[&str]) -> String {
        match parse_from::<Probe>(args.iter().map(OsString::from)) {
            Err(SettingsError::Invalid(sentence)) => sentence,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn rejects_secret_arguments() {
        for url in ["nats://h", "nats://h:4222,tls://i"] {
            let parsed = parse_from::<Probe>(["probe", "--nats-url", url].map(OsString::from));
            assert!(parsed.is_ok(), "{url}: {parsed:?}");
        }
        let literal = parse_error(&["probe", "--nats-url", "nats://h,nats://u:hunter2@h"]);
        assert!(literal.starts_with("TIDEGATE_NATS_URL is an argument"), "{literal}");
        assert!(!literal.contains("hunter2"), "{literal}");
    }

    #[test]
    fn reports_settings_without_values() {
        let unset = parse_error(&["probe"]);
        assert!(unset.starts_with("TIDEGATE_NATS_URL is not set: "), "{unset}");
        let malformed = parse_error(&["probe", "--nats-url", "nats://h", "--ttl", "hunter2"]);
        assert!(
            malformed.starts_with("PROBE_TTL is malformed (expected a number with its unit"),
            "{malformed}"
        );
        assert!(!malformed.contains("hunter2"), "{malformed}");
        let chosen = parse_error(&["probe", "--nats-url", "nats://h", "--log-format", "xml"]);
        assert!(
            chosen.starts_with("TIDEGATE_LOG_FORMAT is malformed (expected text or json): "),
            "{chosen}"
        );
        for sentence in [unset, malformed, chosen, parse_error(&["probe", "--surprise"])] {
            assert_eq!(sentence.lines().count(), 1, "{sentence}");
        }
    }

    #[derive(Debug, Parser)]
    #[command(name = "tool")]
    struct Tool {
        #[command(subcommand)]
        verb: Verb,
    }

    #[derive(Debug, clap::Subcommand)]
    enum Verb {
        /// Show a thing.
        Show {
            /// Id of the thing.
            id: u8,
            /// Connection of the thing.
            #[arg(long)]
            connection: Option<u8>,
        },
        /// List things.
        List {
            /// Only list those of this connection.
            #[arg(long)]
            connection: Option<u8>,
        },
    }

    #[test]
    fn names_argument_of_command() {
        let assert_error = |args: &[&str], expected: &str| {
            let args = ["tool"].iter().chain(args).map(OsString::from);
            match parse_from::<Tool>(args) {
                Err(SettingsError::Invalid(sentence)) => assert_eq!(sentence, expected),
                other => panic!("{other:?}"),
            }
        };
        assert_error(&["show"], "argument <ID> is missing: Id of the thing; see tool show --help");
        assert_error(
            &["show", "x"],
            "<ID> is malformed (invalid digit found in string): Id of the thing",
        );
        assert_error(
            &["list", "--connection", "x"],
            "--connection is malformed (invalid digit found in string): \
             Only list those of this connection",
        );
        assert_error(&["shw"], "unrecognized subcommand 'shw'; similar: show; see tool --help");
        assert_error(
            &["list", "--conection", "1"],
            "unexpected argument '--conection' found; similar: --connection; \
             see tool list --help",
        );
    }

    #[test]
    fn prints_help_without_subcommand() {
        match parse_from::<Tool>(["tool".into()]) {
            Err(SettingsError::NoCommand(help)) => {
                assert!(help.to_string().contains("List things"), "{help}");
            }
            other => panic!("{other:?}"),
        }
    }
}
