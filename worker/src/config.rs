//! Settings of the `worker` binary. Each is a flag and an environment variable.

use clap::Parser;
use shared::{
    runtime::{
        config::{self, NatsConfig, PostgresConfig, TelemetryConfig},
        telemetry::{self, TRACE_SETTINGS},
    },
    secrets::KeyRing,
};
use std::{
    net::{IpAddr, SocketAddr},
    num::{NonZeroU32, NonZeroU64, NonZeroUsize},
    time::Duration,
};

/// Dispatch stored webhooks to agents and send their answers to Slack
#[derive(Debug, Parser)]
#[command(name = "worker", version, after_help = TRACE_SETTINGS)]
pub struct Config {
    /// Name of this worker, unique among workers; random when unset
    #[arg(long, env = "TIDEGATE_WORKER_ID", value_name = "NAME", value_parser = config::parse_name)]
    pub worker_id: Option<String>,
    /// Address and port for health and metrics; not for the public
    #[arg(
        long,
        env = "TIDEGATE_ADMIN_LISTEN",
        value_name = "ADDR",
        default_value = "0.0.0.0:9090"
    )]
    pub admin_listen: SocketAddr,
    /// Keyring of signing secrets, as k2:<base64>,k1:<base64>, file:<path> or exec:<command>;
    /// the same as ingest's
    #[arg(long, env = "TIDEGATE_SIGNING_SECRET_KEYRING", value_name = "RING",
          value_parser = config::parse_key_ring, hide_env_values = true)]
    pub signing_secret_keyring: KeyRing,
    /// Keyring of tokens and agents' secrets, in the same form
    #[arg(long, env = "TIDEGATE_TOKEN_KEYRING", value_name = "RING",
          value_parser = config::parse_key_ring, hide_env_values = true)]
    pub token_keyring: KeyRing,
    /// Time after which other workers claim the partitions of a worker that does not respond
    #[arg(long, env = "TIDEGATE_LEASE_TTL", value_name = "DURATION", default_value = "3s",
          value_parser = config::parse_duration)]
    pub lease_ttl: Duration,
    /// Maximum number of deliveries that run at once in a team's own handler, over all workers
    #[arg(long, env = "TIDEGATE_MAX_CONCURRENT_HANDLERS", value_name = "N", default_value = "64")]
    pub max_concurrent_handlers: NonZeroUsize,
    /// Maximum duration of one call of a team's own handler, after which the delivery is retried.
    /// Agents have their own timeouts
    #[arg(long, env = "TIDEGATE_HANDLER_TIMEOUT", value_name = "DURATION", default_value = "30s",
          value_parser = config::parse_duration)]
    pub handler_timeout: Duration,
    /// Maximum questions of one person to a team's own handler in a minute. Agents have their own
    /// limits
    #[arg(long, env = "TIDEGATE_HANDLER_MAX_PER_USER", value_name = "N", default_value = "30")]
    pub handler_max_per_user: NonZeroU32,
    /// Maximum number of open deliveries of one connection, and of its dead letters with bytes.
    /// Beyond it deliveries become dead letters without bytes
    #[arg(long, env = "TIDEGATE_BACKLOG_MAX_ROWS", value_name = "N", default_value = "1000000")]
    pub backlog_max_rows: NonZeroU64,
    /// Maximum bytes of the open deliveries of one connection, and of its dead letters
    #[arg(
        long,
        env = "TIDEGATE_BACKLOG_MAX_BYTES",
        value_name = "BYTES",
        default_value = "10737418240"
    )]
    pub backlog_max_bytes: NonZeroU64,
    /// Time for calls to agents and Slack to end after SIGTERM; partitions are released at once
    #[arg(
        long,
        env = "TIDEGATE_SHUTDOWN_GRACE_PERIOD",
        value_name = "DURATION",
        default_value = "30s",
        value_parser = config::parse_duration
    )]
    pub shutdown_grace_period: Duration,
    /// Slash command, with its slash
    #[arg(long, env = "TIDEGATE_SLASH_COMMAND", value_name = "COMMAND", default_value = "/lobu")]
    pub slash_command: String,
    /// Base URL of Slack's Web API
    #[arg(
        long,
        env = "TIDEGATE_SLACK_API_URL",
        value_name = "URL",
        default_value = "https://slack.com/api/"
    )]
    pub slack_api_url: reqwest::Url,
    /// Allowed origins of a response_url, comma-separated
    #[arg(
        long,
        env = "TIDEGATE_RESPONSE_URL_ORIGINS",
        value_name = "URLS",
        value_delimiter = ',',
        default_value = "https://hooks.slack.com,https://hooks.slack-gov.com"
    )]
    pub response_url_origins: Vec<reqwest::Url>,
    /// Minimum interval between two messages to a channel: Slack allows about one per second
    #[arg(
        long,
        env = "TIDEGATE_SLACK_CHANNEL_MIN_INTERVAL",
        value_name = "DURATION",
        default_value = "1s",
        value_parser = config::parse_duration
    )]
    pub slack_channel_min_interval: Duration,
    /// Time after which a streamed answer continues in another message: Slack ends a stream after
    /// about 300 seconds
    #[arg(long, env = "TIDEGATE_STREAMED_MESSAGE_MAX_AGE", value_name = "DURATION",
          default_value = "240s", value_parser = config::parse_duration)]
    pub streamed_message_max_age: Duration,
    /// Maximum number of streamed answers of an agent, over all workers, that occupy no agent slot;
    /// each further one occupies a slot
    #[arg(long, env = "TIDEGATE_AGENT_MAX_RUNS", value_name = "COUNT", default_value = "1000")]
    pub agent_max_runs: NonZeroU32,
    /// Minimum interval between two parts of streamed answers of a connection: Slack allows about
    /// 100 in a minute
    #[arg(long, env = "TIDEGATE_SLACK_APPEND_MIN_INTERVAL", value_name = "DURATION",
          default_value = "750ms", value_parser = config::parse_duration)]
    pub slack_append_min_interval: Duration,
    /// Minimum interval between the starts of two streamed messages of a connection: Slack allows
    /// about 20 in a minute. Beyond it, messages are edited
    #[arg(long, env = "TIDEGATE_SLACK_STREAM_MIN_INTERVAL", value_name = "DURATION",
          default_value = "3s", value_parser = config::parse_duration)]
    pub slack_stream_min_interval: Duration,
    /// Minimum interval between two edits of a message
    #[arg(long, env = "TIDEGATE_SLACK_EDIT_MIN_INTERVAL", value_name = "DURATION",
          default_value = "3s", value_parser = config::parse_duration)]
    pub slack_edit_min_interval: Duration,
    /// Maximum time without data from an agent that streams its answer; comments count as data
    #[arg(long, env = "TIDEGATE_AGENT_STREAM_SILENCE_TIMEOUT", value_name = "DURATION",
          default_value = "60s", value_parser = config::parse_duration)]
    pub agent_stream_silence_timeout: Duration,
    /// Maximum duration of a streamed answer
    #[arg(long, env = "TIDEGATE_RUN_TIMEOUT", value_name = "DURATION", default_value = "6h",
          value_parser = config::parse_duration)]
    pub run_timeout: Duration,
    /// Maximum bytes of a connection's committed webhooks in the stream; older ones are purged
    /// before their age
    #[arg(
        long,
        env = "TIDEGATE_STREAM_MAX_BYTES_PER_CONNECTION",
        value_name = "BYTES",
        default_value = "1GiB",
        value_parser = config::parse_bytes
    )]
    pub stream_max_bytes_per_connection: u64,
    /// Networks that agents may have besides public addresses, as 10.1.0.0/16; comma-separated
    #[arg(
        long,
        env = "TIDEGATE_AGENT_ALLOWED_NETWORKS",
        value_name = "NETWORKS",
        value_delimiter = ','
    )]
    pub agent_allowed_networks: Vec<ipnet::IpNet>,
    /// Time for which entries of the audit log are kept, 30d or more
    #[arg(
        long,
        env = "TIDEGATE_AUDIT_LOG_RETENTION_PERIOD",
        value_name = "DURATION",
        default_value = "400d",
        value_parser = config::parse_duration
    )]
    pub audit_log_retention_period: Duration,
    /// Time for which the data of an uninstalled app is kept; 1d or more
    #[arg(
        long,
        env = "TIDEGATE_UNINSTALLED_RETENTION_PERIOD",
        value_name = "DURATION",
        default_value = "30d",
        value_parser = config::parse_duration
    )]
    pub uninstalled_retention_period: Duration,
    /// Connection to NATS.
    #[command(flatten)]
    pub nats: NatsConfig,
    /// Connection to Postgres.
    #[command(flatten)]
    pub postgres: PostgresConfig,
    /// Logs and traces.
    #[command(flatten)]
    pub telemetry: TelemetryConfig,
}

/// Time after the grace period for the last writes to Postgres and to the trace collector.
pub const BEYOND_GRACE: Duration = Duration::from_secs(1);

/// Minimum retention of the audit log, which Postgres enforces.
const AUDIT_LOG_RETENTION_MIN: Duration = Duration::from_secs(30 * 24 * 3600);
/// Minimum of `uninstalled_retention_period`, which Postgres enforces, too.
const UNINSTALLED_RETENTION_MIN: Duration = Duration::from_secs(24 * 3600);

/// Minimum lease TTL: a short pause of the process must not lose a lease.
const LEASE_TTL_MIN: Duration = Duration::from_millis(300);

impl Config {
    /// Checks the settings that clap cannot check. Returns an error that names the setting.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.lease_ttl >= LEASE_TTL_MIN,
            "TIDEGATE_LEASE_TTL is too short: use 300ms or more"
        );
        anyhow::ensure!(
            self.uninstalled_retention_period >= UNINSTALLED_RETENTION_MIN,
            "TIDEGATE_UNINSTALLED_RETENTION_PERIOD is too short: use 1d or more"
        );
        anyhow::ensure!(
            self.audit_log_retention_period >= AUDIT_LOG_RETENTION_MIN,
            "TIDEGATE_AUDIT_LOG_RETENTION_PERIOD is too short: use 30d or more"
        );
        let origins = self.response_url_origins.iter();
        let origins = origins.map(|url| ("TIDEGATE_RESPONSE_URL_ORIGINS", url));
        for (name, url) in origins.chain([("TIDEGATE_SLACK_API_URL", &self.slack_api_url)]) {
            anyhow::ensure!(
                url.scheme() == "https" || (url.scheme() == "http" && self.is_internal(url)),
                "{name} is unsafe: use https; only a simulator on this machine or in \
                 TIDEGATE_AGENT_ALLOWED_NETWORKS may use http"
            );
        }
        anyhow::ensure!(
            self.slash_command.starts_with('/'),
            "TIDEGATE_SLASH_COMMAND is malformed: begin it with a slash, as in /lobu"
        );
        telemetry::has_collector()?;
        Ok(())
    }

    /// Returns whether a URL leads to this machine or to a network of `agent_allowed_networks`.
    fn is_internal(&self, url: &reqwest::Url) -> bool {
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let is_named =
            |ip: IpAddr| self.agent_allowed_networks.iter().any(|network| network.contains(&ip));
        host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback() || is_named(ip))
    }
}
