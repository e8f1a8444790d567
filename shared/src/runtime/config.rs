//! Settings that all processes share, and the parsers of their values.
//!
//! A setting is a flag and an environment variable. A missing or malformed setting ends the process
//! at start with one sentence that names it (exit code 64, EX_USAGE). Values contain their unit:
//! `3s`, `250ms`.

pub use super::{
    command_line::{EX_USAGE, SettingsError, parse, parse_from},
    secret_sources::{key_id, parse_key_ring, parse_secret},
};

use super::secret_sources::read_secret;
use crate::domain::AgentId;
use async_nats::{ConnectOptions, Event, jetstream};
use std::{fmt, path::PathBuf, time::Duration};
use tracing::{info, warn};

/// Connection settings of NATS.
#[derive(Clone, clap::Args)]
pub struct NatsConfig {
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

impl fmt::Debug for NatsConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A URL may contain a password.
        write!(f, "NatsConfig {{ urls: …, nkey_file: {:?} }}", self.nkey_file)
    }
}

/// Maximum wait for JetStream, except for publishing.
const API_TIMEOUT: Duration = Duration::from_secs(2);

impl NatsConfig {
    /// Returns the addresses of the servers without passwords, for logs and errors.
    pub fn servers(&self) -> String {
        let named = self.urls.iter().map(|url| match url.host() {
            host if host.contains(':') => format!("[{host}]:{}", url.port()),
            host => format!("{host}:{}", url.port()),
        });
        named.collect::<Vec<_>>().join(",")
    }

    /// Connects, and reconnects in the background. Succeeds while NATS is unavailable.
    ///
    /// `role` names the client and its inbox, so that no role can read the replies to another.
    pub async fn connect(&self, role: &'static str) -> Result<async_nats::Client, NatsError> {
        let mut options = ConnectOptions::new();
        if let Some(file) = &self.nkey_file {
            let seed = std::fs::read_to_string(file)
                .map_err(|source| NatsError::UnreadableSeed { file: file.clone(), source })?;
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
            .event_callback({
                let servers = self.servers();
                move |event| {
                    let servers = servers.clone();
                    async move { log_event(&event, &servers) }
                }
            })
            .connect(&self.urls[..])
            .await
            .map_err(NatsError::Rejected)
    }
}

/// Logs an event of the client. `servers` are the configured addresses.
fn log_event(event: &Event, servers: &str) {
    let settings = "TIDEGATE_NATS_URL, TIDEGATE_NATS_NKEY_FILE, TIDEGATE_NATS_CA_FILE";
    match event {
        Event::Connected => info!(servers, "connected to NATS"),
        Event::Disconnected => warn!(servers, "disconnected from NATS"),
        Event::ClientError(error) => {
            warn!(servers, settings, %error, "failed to connect to NATS; check the settings");
        }
        other => warn!(servers, event = %other, "NATS event received"),
    }
}

/// Failure to create a NATS client.
#[derive(Debug, thiserror::Error)]
pub enum NatsError {
    /// The nkey file is unreadable.
    #[error("failed to read TIDEGATE_NATS_NKEY_FILE {}", file.display())]
    UnreadableSeed {
        /// Path of the file.
        file: PathBuf,
        /// Cause.
        source: std::io::Error,
    },
    /// NATS rejected the connection.
    #[error("NATS rejected the connection; check TIDEGATE_NATS_URL and TIDEGATE_NATS_NKEY_FILE")]
    Rejected(#[source] async_nats::ConnectError),
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
pub struct PostgresConfig {
    /// Postgres, as postgres://user:password@host/database or file:<path>. Unless the URL has an
    /// sslmode, hosts other than this machine require TLS with a verified certificate.
    #[arg(
        long = "postgres-url",
        env = "TIDEGATE_POSTGRES_URL",
        value_name = "URL",
        value_parser = postgres_url,
        hide_env_values = true
    )]
    pub url: String,
    /// File with the certificate authority of Postgres, as PEM, in addition to those of the system.
    #[arg(
        id = "postgres_ca_file",
        long = "postgres-ca-file",
        env = "TIDEGATE_POSTGRES_CA_FILE",
        value_name = "FILE"
    )]
    pub ca_file: Option<PathBuf>,
    /// Maximum number of connections to Postgres. A worker has four more, for leases and
    /// notifications.
    #[arg(
        long = "postgres-max-connections",
        env = "TIDEGATE_POSTGRES_MAX_CONNECTIONS",
        value_name = "N",
        default_value_t = 16,
        value_parser = parse_connections
    )]
    pub max_connections: u32,
}

impl fmt::Debug for PostgresConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresConfig {{ url: …, max_connections: {} }}", self.max_connections)
    }
}

/// Format of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Text for people.
    Text,
    /// JSON object per line.
    Json,
}

/// Settings of logs. Traces have the variables of OpenTelemetry, see [`crate::runtime::telemetry`].
#[derive(Debug, Clone, clap::Args)]
pub struct TelemetryConfig {
    /// Log filter, as in `info` or `warn,worker=debug`.
    #[arg(
        long = "log-filter",
        env = "TIDEGATE_LOG_FILTER",
        value_name = "FILTER",
        default_value = "info",
        value_parser = parse_log_filter
    )]
    pub filter: String,
    /// Format of log lines: text or json.
    #[arg(
        long = "log-format",
        env = "TIDEGATE_LOG_FORMAT",
        value_name = "FORMAT",
        default_value = "text",
        hide_possible_values = true
    )]
    pub format: LogFormat,
}

/// Parses the URL of Postgres, or `file:<path>`. Rejects URLs of other servers.
fn postgres_url(setting: &str) -> Result<String, String> {
    let url = read_secret(setting)?;
    let is_postgres = ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme));
    match is_postgres {
        true => Ok(url),
        false => Err("expected postgres://user:password@host/database or file:<path>".into()),
    }
}

/// Parses a name that is safe in subjects, consumer names and logs. Follows the rule of ids.
pub fn parse_name(text: &str) -> Result<String, String> {
    let checked: Result<AgentId, _> = text.parse();
    checked
        .map(|name| name.to_string())
        .map_err(|_| "expected 1 to 64 letters, digits, '_' or '-'".into())
}

/// Checks a log filter for [`crate::runtime::telemetry`].
fn parse_log_filter(text: &str) -> Result<String, String> {
    let checked = tracing_subscriber::EnvFilter::try_new(text);
    checked
        .map(|_| text.to_owned())
        .map_err(|_| "expected a filter, as in info or warn,worker=debug".into())
}

/// Maximum of a duration: 100 years. Adding a longer one to a time may overflow.
const DURATION_MAX: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Parses a duration with its unit: `3s`, `250ms`, `1m 30s`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text)
        .map_err(|_| "expected a number with its unit, as in 3s or 250ms")?;
    match duration <= DURATION_MAX {
        true => Ok(duration),
        false => Err("expected at most 36500d".into()),
    }
}

/// Maximum number of connections of a pool or a listener: their tables are allocated at start.
const CONNECTIONS_MAX: u32 = 100_000;

/// Parses a number of connections: 1 to 100,000.
pub fn parse_connections(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (1..=CONNECTIONS_MAX).contains(number));
    number.ok_or_else(|| format!("expected 1 to {CONNECTIONS_MAX}"))
}

/// Parses a number of bytes with its unit: `64MiB`, `256KiB`, `512B`.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];
    let parse = |(name, unit)| u64::checked_mul(text.strip_suffix(name)?.parse().ok()?, unit);
    let bytes = units.into_iter().find_map(parse);
    bytes.ok_or_else(|| "expected a number with its unit, as in 64MiB or 256KiB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_bytes_with_unit() {
        assert_eq!(["64MiB", "1GiB", "0B"].map(parse_bytes), [Ok(64 << 20), Ok(1 << 30), Ok(0)]);
        let wrong = ["64", "-1MiB", "64MB", "99999999999999GiB"].map(parse_bytes);
        assert!(wrong.iter().all(Result::is_err));
    }

    #[test]
    fn bounds_durations_and_connections() {
        assert_eq!(parse_duration("36500d"), Ok(DURATION_MAX));
        assert!(["36501d", "9999999999y", "3", ""].map(parse_duration).iter().all(Result::is_err));
        assert_eq!(["1", "100000"].map(parse_connections), [Ok(1), Ok(CONNECTIONS_MAX)]);
        let wrong = ["0", "100001", "-1", "4294967296"].map(parse_connections);
        assert!(wrong.iter().all(Result::is_err));
    }

    #[test]
    fn rejects_urls_of_other_servers() {
        for url in ["http://x/y", "nats://h", "host/database", "mysql://h/d", ""] {
            assert!(postgres_url(url).is_err(), "{url}");
        }
        assert!(postgres_url("postgresql://u:p@h/d").is_ok());
    }

    #[test]
    fn names_servers_without_passwords() {
        let urls =
            ["nats://u:hunter2@h", "tls://[::1]:5000"].map(|url| url.parse().expect("a URL"));
        let config = NatsConfig { urls: urls.to_vec(), nkey_file: None, ca_file: None };
        assert_eq!(config.servers(), "h:4222,[::1]:5000");
    }
}
