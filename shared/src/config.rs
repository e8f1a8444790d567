//! Settings that all processes share, and their parser.
//!
//! A setting is a flag and an environment variable. A missing or malformed setting ends the process
//! at start with one sentence that names it (exit code 64, EX_USAGE). Values contain their unit:
//! `3s`, `250ms`.

use crate::{
    secrets::{InvalidKeyRing, KeyRing, Secret},
    types::AgentId,
};
use async_nats::{ConnectOptions, Event, jetstream};
use clap::{Parser, error::ContextKind, error::ContextValue, error::ErrorKind};
use std::{ffi::OsString, fmt, path::PathBuf, process::ExitCode, time::Duration};
use tracing::{info, warn};

/// Exit code for wrong settings.
pub const EX_USAGE: u8 = 64;

/// Connection settings of NATS.
#[derive(Clone, clap::Args)]
pub struct Nats {
    /// NATS servers, comma-separated, as nats://host:4222.
    #[arg(
        long = "nats-url",
        env = "TIDEGATE_NATS_URL",
        value_name = "URL",
        hide_env_values = true,
        value_delimiter = ',',
        required = true
    )]
    pub urls: Vec<async_nats::ServerAddr>,
    /// File with the nkey seed that authenticates this process to NATS.
    #[arg(long = "nats-nkey-file", env = "TIDEGATE_NATS_NKEY_FILE", value_name = "FILE")]
    pub nkey_file: Option<PathBuf>,
    /// File with the certificate authority of the NATS servers, as PEM. Requires TLS.
    #[arg(long = "nats-ca-file", env = "TIDEGATE_NATS_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

impl fmt::Debug for Nats {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // an address may contain a password
        write!(f, "Nats {{ urls: …, nkey_file: {:?} }}", self.nkey_file)
    }
}

/// Maximum wait for JetStream, except for publishing.
const API_TIMEOUT: Duration = Duration::from_secs(2);

impl Nats {
    /// Connects, and reconnects in the background. Succeeds while NATS is unavailable.
    ///
    /// `role` names the client and its inbox, so that no role can read the replies to another.
    pub async fn connect(&self, role: &'static str) -> Result<async_nats::Client, NatsError> {
        let mut options = ConnectOptions::new();
        if let Some(file) = &self.nkey_file {
            let seed = std::fs::read_to_string(file)
                .map_err(|source| NatsError::Seed { file: file.clone(), source })?;
            options = ConnectOptions::with_nkey(seed.trim().to_owned());
        }
        if let Some(file) = &self.ca_file {
            options = options.add_root_certificates(file.clone()).require_tls(true);
        }
        options
            .name(format!("tidegate-{role}"))
            .custom_inbox_prefix(format!("_INBOX_{role}"))
            .connection_timeout(Duration::from_secs(2))
            // Two missed pings reveal a half-open connection. The default of 60 s is too slow.
            .ping_interval(Duration::from_secs(2))
            .reconnect_delay_callback(|tries| Duration::from_millis((50 * tries as u64).min(500)))
            .retry_on_initial_connect()
            // A permission error appears only here. The request itself times out.
            .event_callback(|event| async move {
                match event {
                    Event::Connected => info!("connected to NATS"),
                    Event::Disconnected => warn!("disconnected from NATS"),
                    other => warn!(event = %other, "NATS event received"),
                }
            })
            .connect(&self.urls[..])
            .await
            .map_err(NatsError::Connect)
    }
}

/// Failure to create a NATS client.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// The nkey file is unreadable.
    #[error("failed to read TIDEGATE_NATS_NKEY_FILE {}", file.display())]
    Seed {
        /// Path of the file.
        file: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// NATS rejected the connection.
    #[error("NATS rejected the connection")]
    Connect(#[source] async_nats::ConnectError),
}

/// Returns a JetStream context whose timeouts fit Slack's deadline of three seconds.
pub fn jetstream(client: async_nats::Client) -> jetstream::Context {
    jetstream::context::ContextBuilder::new()
        .timeout(API_TIMEOUT)
        .ack_timeout(Duration::from_secs(1))
        .max_ack_inflight(20_000)
        .build(client)
}

/// Connection settings of Postgres.
#[derive(Clone, clap::Args)]
pub struct Postgres {
    /// Postgres, as postgres://user:password@host/database or file:<path>.
    #[arg(
        long = "postgres-url",
        env = "TIDEGATE_POSTGRES_URL",
        value_name = "URL",
        value_parser = read_secret,
        hide_env_values = true
    )]
    pub url: String,
    /// Maximum number of connections to Postgres. A worker has four more, for leases and
    /// notifications.
    #[arg(
        long = "postgres-connections",
        env = "TIDEGATE_POSTGRES_CONNECTIONS",
        value_name = "N",
        default_value_t = 16
    )]
    pub connections: u32,
}

impl fmt::Debug for Postgres {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Postgres {{ url: …, connections: {} }}", self.connections)
    }
}

/// Settings of logs and traces.
#[derive(Debug, Clone, clap::Args)]
pub struct Telemetry {
    /// Log filter, as in `info` or `warn,worker=debug`.
    #[arg(
        long = "log",
        env = "TIDEGATE_LOG",
        value_name = "FILTER",
        default_value = "info",
        value_parser = log_filter
    )]
    pub filter: String,
    /// OpenTelemetry collector for traces by OTLP over HTTP, as http://collector:4318. Without it
    /// there are no traces.
    #[arg(
        long = "otlp-endpoint",
        env = "TIDEGATE_OTLP_ENDPOINT",
        value_name = "URL",
        value_parser = collector_url
    )]
    pub otlp_endpoint: Option<String>,
    /// Log as JSON lines instead of text.
    #[arg(
        long = "log-json",
        env = "TIDEGATE_LOG_JSON",
        value_name = "BOOL",
        default_value_t = false,
        num_args = 0..=1,
        default_missing_value = "true"
    )]
    pub json: bool,
}

/// Parses a secret setting: the text itself, or `file:<path>` for the content of a file.
fn read_secret(setting: &str) -> Result<String, String> {
    match setting.strip_prefix("file:") {
        None => Ok(setting.to_owned()),
        Some(path) => std::fs::read_to_string(path)
            .map(|text| text.trim_end().to_owned())
            .map_err(|error| format!("failed to read the file: {error}")),
    }
}

/// Parses a key ring: `k2:<base64>,k1:<base64>`, or `file:<path>`.
pub fn key_ring(setting: &str) -> Result<KeyRing, String> {
    read_secret(setting)?.parse().map_err(|error: InvalidKeyRing| error.to_string())
}

/// Parses a secret: its text, or `file:<path>`.
pub fn secret(setting: &str) -> Result<Secret, String> {
    Secret::new(read_secret(setting)?).map_err(|error| error.to_string())
}

/// Parses a name that is safe in subjects, consumer names and logs. Follows the rule of ids.
pub fn name(text: &str) -> Result<String, String> {
    let checked: Result<AgentId, _> = text.parse();
    checked
        .map(|name| name.to_string())
        .map_err(|_| "expected 1 to 64 letters, digits, '_' or '-'".into())
}

/// Parses the address of a collector.
fn collector_url(text: &str) -> Result<String, String> {
    let plain = text.starts_with("http://") || text.starts_with("https://");
    plain.then(|| text.to_owned()).ok_or_else(|| "expected http://collector:4318".into())
}

/// Checks a log filter for [`crate::telemetry`].
fn log_filter(text: &str) -> Result<String, String> {
    let checked = tracing_subscriber::EnvFilter::try_new(text);
    checked.map(|_| text.to_owned()).map_err(|_| "expected info, or warn,worker=debug".into())
}

/// Parses a duration with its unit: `3s`, `250ms`, `1m 30s`.
pub fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text)
        .map_err(|_| "expected a number with its unit, as in 3s or 250ms".into())
}

/// Parses the settings. On failure prints one sentence that names the wrong setting and returns
/// [`EX_USAGE`].
pub fn parse<C: Parser>() -> Result<C, ExitCode> {
    parse_from(std::env::args_os()).map_err(|stop| match stop {
        Stop::Help(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Stop::Wrong(sentence) => {
            eprintln!("{sentence}");
            ExitCode::from(EX_USAGE)
        }
    })
}

/// Outcome of [`parse_from`] without settings.
#[derive(Debug)]
pub enum Stop {
    /// Help or version was requested.
    Help(clap::builder::StyledStr),
    /// A setting is wrong. The sentence names it.
    Wrong(String),
}

/// Parses the given arguments.
pub fn parse_from<C: Parser>(args: impl IntoIterator<Item = OsString>) -> Result<C, Stop> {
    C::try_parse_from(args).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => Stop::Help(error.render()),
        _ => Stop::Wrong(sentence(&C::command(), &error)),
    })
}

fn sentence(command: &clap::Command, error: &clap::Error) -> String {
    let context = |kind| error.get(kind).map(ContextValue::to_string).unwrap_or_default();
    // clap names the flag. Operators know the environment variable.
    let named = |shown: &str| {
        let flag = shown.split_whitespace().next().unwrap_or(shown).trim_start_matches('-');
        let found = find_setting(command, flag);
        let variable = found.and_then(|a| a.get_env()).map(|v| v.to_string_lossy().into_owned());
        let help = found.and_then(|a| a.get_help()).map(ToString::to_string).unwrap_or_default();
        (variable.unwrap_or_else(|| format!("--{flag}")), help)
    };
    match error.kind() {
        ErrorKind::MissingRequiredArgument => {
            let missing = match error.get(ContextKind::InvalidArg) {
                Some(ContextValue::Strings(args)) => args.first().cloned().unwrap_or_default(),
                other => other.map(ToString::to_string).unwrap_or_default(),
            };
            let (setting, help) = named(&missing);
            format!("{setting} is not set: {help}")
        }
        ErrorKind::ValueValidation | ErrorKind::InvalidValue => {
            let (setting, help) = named(&context(ContextKind::InvalidArg));
            // The value is omitted because it may be a secret.
            let why =
                std::error::Error::source(error).map(|e| format!(" ({e})")).unwrap_or_default();
            format!("{setting} is malformed{why}: {help}")
        }
        _ => {
            let text = error.to_string();
            text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        }
    }
}

/// Returns a setting by its flag, from the command or its subcommands.
fn find_setting<'c>(command: &'c clap::Command, flag: &str) -> Option<&'c clap::Arg> {
    let own = command.get_arguments().find(|setting| setting.get_long() == Some(flag));
    own.or_else(|| command.get_subcommands().find_map(|verb| find_setting(verb, flag)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Parser)]
    struct Probe {
        #[command(flatten)]
        nats: Nats,
        /// Lifetime of a lease.
        #[arg(long, env = "PROBE_TTL", default_value = "3s", value_parser = duration)]
        ttl: Duration,
    }

    fn wrong(args: &[&str]) -> String {
        match parse_from::<Probe>(args.iter().map(OsString::from)) {
            Err(Stop::Wrong(sentence)) => sentence,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn reports_wrong_settings_without_values() {
        let unset = wrong(&["probe"]);
        assert!(unset.starts_with("TIDEGATE_NATS_URL is not set: "), "{unset}");
        let malformed = wrong(&["probe", "--nats-url", "nats://h", "--ttl", "hunter2"]);
        assert!(
            malformed.starts_with("PROBE_TTL is malformed (expected a number with its unit"),
            "{malformed}"
        );
        assert!(!malformed.contains("hunter2"), "{malformed}");
        for sentence in [unset, malformed, wrong(&["probe", "--surprise"])] {
            assert_eq!(sentence.lines().count(), 1, "{sentence}");
        }
    }
}
