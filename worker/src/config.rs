//! Every setting of the `worker` binary. Each is a flag and an environment variable.

use clap::Parser;
use shared::{
    config::{self, Nats, Postgres, Telemetry},
    secrets::KeyRing,
};
use std::{net::SocketAddr, num::NonZeroUsize, time::Duration};

/// Handles stored webhooks: the back of Tidegate.
#[derive(Debug, Parser)]
#[command(name = "worker", version)]
pub struct Config {
    /// This worker's name among the others; made up when unset.
    #[arg(long, env = "TIDEGATE_WORKER_ID", value_name = "NAME", value_parser = config::name)]
    pub worker_id: Option<String>,
    /// Where health and figures are told, as address:port; not for the public.
    #[arg(
        long,
        env = "TIDEGATE_ADMIN_LISTEN",
        value_name = "ADDR",
        default_value = "0.0.0.0:9090"
    )]
    pub admin_listen: SocketAddr,
    /// Key ring that opens signing secrets, as k2:<base64>,k1:<base64> or file:<path>; the same as the ingests'.
    #[arg(long, env = "TIDEGATE_SIGNING_SECRET_KEYRING", value_name = "RING", value_parser = config::key_ring, hide_env_values = true)]
    pub signing_secret_keyring: KeyRing,
    /// Key ring that opens tokens and agents' secrets, in the same form.
    #[arg(long, env = "TIDEGATE_TOKEN_KEYS", value_name = "RING", value_parser = config::key_ring, hide_env_values = true)]
    pub token_keys: KeyRing,
    /// How long a partition stays with a worker that went silent.
    #[arg(long, env = "TIDEGATE_LEASE_TTL", value_name = "DURATION", default_value = "3s", value_parser = config::duration)]
    pub lease_ttl: Duration,
    /// Deliveries that a team's own handler takes at once, on all workers together.
    #[arg(long, env = "TIDEGATE_HANDLERS", value_name = "N", default_value = "64")]
    pub handlers: NonZeroUsize,
    /// Time that a team's own handler may take for one webhook; then it is cancelled, and tried again later. Agents have
    /// timeouts of their own.
    #[arg(long, env = "TIDEGATE_HANDLER_DEADLINE", value_name = "DURATION", default_value = "30s", value_parser = config::duration)]
    pub handler_deadline: Duration,
    /// Time that calls to agents and Slack may take to end after SIGTERM; partitions are given back at once.
    #[arg(long, env = "TIDEGATE_GRACE", value_name = "DURATION", default_value = "30s", value_parser = config::duration)]
    pub grace: Duration,
    /// The slash command, with its slash.
    #[arg(long, env = "TIDEGATE_COMMAND", value_name = "COMMAND", default_value = "/lobu")]
    pub command: String,
    /// Slack's Web API.
    #[arg(
        long,
        env = "TIDEGATE_SLACK_API",
        value_name = "URL",
        default_value = "https://slack.com/api/"
    )]
    pub slack_api: reqwest::Url,
    /// Origins a response_url may have, comma-separated.
    #[arg(
        long,
        env = "TIDEGATE_RESPONSE_URL_ORIGINS",
        value_name = "URLS",
        value_delimiter = ',',
        default_value = "https://hooks.slack.com,https://hooks.slack-gov.com"
    )]
    pub response_url_origins: Vec<reqwest::Url>,
    /// Least time between two messages to one channel: Slack takes about one a second.
    #[arg(long, env = "TIDEGATE_CHANNEL_PACE", value_name = "DURATION", default_value = "1s", value_parser = config::duration)]
    pub channel_pace: Duration,
    /// Networks in which agents may be beside public addresses, as 10.1.0.0/16; comma-separated.
    #[arg(long, env = "TIDEGATE_AGENT_NETWORKS", value_name = "NETWORKS", value_delimiter = ',')]
    pub agent_networks: Vec<ipnet::IpNet>,
    /// Where NATS is.
    #[command(flatten)]
    pub nats: Nats,
    /// Where Postgres is.
    #[command(flatten)]
    pub postgres: Postgres,
    /// How logs look.
    #[command(flatten)]
    pub telemetry: Telemetry,
}

/// What the grace does not cover when we stop: the last word to Postgres, and to the collector of traces.
pub const BEYOND_GRACE: Duration = Duration::from_secs(1);

/// A lease shorter than this would be lost to an ordinary pause.
const LEASE_TTL_MIN: Duration = Duration::from_millis(300);

impl Config {
    /// Checks what no setting can say of itself alone.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.lease_ttl >= LEASE_TTL_MIN,
            "TIDEGATE_LEASE_TTL is too short: say 300ms or more"
        );
        anyhow::ensure!(
            self.command.starts_with('/'),
            "TIDEGATE_COMMAND is malformed: it begins with a slash, as in /lobu"
        );
        Ok(())
    }
}
