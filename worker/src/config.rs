//! Settings of the `worker` binary. Each is a flag and an environment variable.

use clap::Parser;
use shared::{
    config::{self, Nats, Postgres, Telemetry},
    secrets::KeyRing,
};
use std::{net::SocketAddr, num::NonZeroUsize, time::Duration};

/// Dispatch stored webhooks to agents and send their answers to Slack
#[derive(Debug, Parser)]
#[command(name = "worker", version)]
pub struct Config {
    /// Name of this worker among the others; random when unset
    #[arg(long, env = "TIDEGATE_WORKER_ID", value_name = "NAME", value_parser = config::name)]
    pub worker_id: Option<String>,
    /// Address of health checks and metrics, as address:port; not public
    #[arg(
        long,
        env = "TIDEGATE_ADMIN_LISTEN",
        value_name = "ADDR",
        default_value = "0.0.0.0:9090"
    )]
    pub admin_listen: SocketAddr,
    /// Keyring of signing secrets, as k2:<base64>,k1:<base64> or file:<path>; the same as ingest's
    #[arg(long, env = "TIDEGATE_SIGNING_SECRET_KEYRING", value_name = "RING",
          value_parser = config::key_ring, hide_env_values = true)]
    pub signing_secret_keyring: KeyRing,
    /// Keyring of tokens and agents' secrets, in the same form
    #[arg(long, env = "TIDEGATE_TOKEN_KEYS", value_name = "RING",
          value_parser = config::key_ring, hide_env_values = true)]
    pub token_keys: KeyRing,
    /// Time after which other workers claim the partitions of a worker that does not respond
    #[arg(long, env = "TIDEGATE_LEASE_TTL", value_name = "DURATION", default_value = "3s",
          value_parser = config::duration)]
    pub lease_ttl: Duration,
    /// Maximum number of deliveries that run in a team's own handler, of all workers
    #[arg(long, env = "TIDEGATE_HANDLERS", value_name = "N", default_value = "64")]
    pub handlers: NonZeroUsize,
    /// Maximum duration of one call of a team's own handler, after which the delivery is retried.
    /// Agents have their own timeouts
    #[arg(long, env = "TIDEGATE_HANDLER_DEADLINE", value_name = "DURATION", default_value = "30s",
          value_parser = config::duration)]
    pub handler_deadline: Duration,
    /// Time in which calls to agents and Slack may end after SIGTERM; partitions are released at
    /// once
    #[arg(long, env = "TIDEGATE_GRACE", value_name = "DURATION", default_value = "30s",
          value_parser = config::duration)]
    pub grace: Duration,
    /// Slash command, with its slash
    #[arg(long, env = "TIDEGATE_COMMAND", value_name = "COMMAND", default_value = "/lobu")]
    pub command: String,
    /// Base URL of Slack's Web API
    #[arg(
        long,
        env = "TIDEGATE_SLACK_API",
        value_name = "URL",
        default_value = "https://slack.com/api/"
    )]
    pub slack_api: reqwest::Url,
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
    #[arg(long, env = "TIDEGATE_CHANNEL_PACE", value_name = "DURATION", default_value = "1s",
          value_parser = config::duration)]
    pub channel_pace: Duration,
    /// Networks in which agents may be besides public addresses, as 10.1.0.0/16; comma-separated
    #[arg(long, env = "TIDEGATE_AGENT_NETWORKS", value_name = "NETWORKS", value_delimiter = ',')]
    pub agent_networks: Vec<ipnet::IpNet>,
    /// Connection to NATS.
    #[command(flatten)]
    pub nats: Nats,
    /// Connection to Postgres.
    #[command(flatten)]
    pub postgres: Postgres,
    /// Logs and traces.
    #[command(flatten)]
    pub telemetry: Telemetry,
}

/// Shutdown time after the grace period: last writes to Postgres and to the trace collector.
pub const BEYOND_GRACE: Duration = Duration::from_secs(1);

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
            self.command.starts_with('/'),
            "TIDEGATE_COMMAND is malformed: begin it with a slash, as in /lobu"
        );
        Ok(())
    }
}
