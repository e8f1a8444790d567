//! Every setting of the `ingest` binary. Each is a flag and an environment variable.

use clap::Parser;
use shared::{
    config::{self, Nats, Telemetry},
    secrets::{KeyRing, Secret},
};
use std::{net::SocketAddr, time::Duration};

/// Takes Slack's webhooks and stores them: the front of Tidegate.
#[derive(Debug, Parser)]
#[command(name = "ingest", version)]
pub struct Config {
    /// Where Slack's webhooks arrive, as address:port.
    #[arg(long, env = "TIDEGATE_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Where health is told, as address:port; not for the public.
    #[arg(
        long,
        env = "TIDEGATE_ADMIN_LISTEN",
        value_name = "ADDR",
        default_value = "0.0.0.0:9090"
    )]
    pub admin_listen: SocketAddr,
    /// Key ring that opens signing secrets, as k2:<base64>,k1:<base64> or file:<path>; the same as the workers'.
    #[arg(long, env = "TIDEGATE_SIGNING_SECRET_KEYRING", value_name = "RING", value_parser = config::key_ring, hide_env_values = true)]
    pub signing_secret_keyring: KeyRing,
    /// Signing secrets of the shared app, newest first, comma-separated or file:<path>; without them /slack/events is closed.
    #[arg(long, env = "TIDEGATE_SHARED_SIGNING_SECRETS", value_name = "SECRETS", value_delimiter = ',',
          value_parser = config::secret, hide_env_values = true)]
    pub shared_signing_secrets: Vec<Secret>,
    /// Connections served at once; more wait in the kernel's queue.
    #[arg(long, env = "TIDEGATE_HTTP_MAX_CONNECTIONS", value_name = "N", default_value_t = 10_000)]
    pub http_max_connections: usize,
    /// Webhooks in flight at once; more are answered 503 at once.
    #[arg(long, env = "TIDEGATE_HTTP_MAX_IN_FLIGHT", value_name = "N", default_value_t = 2_000)]
    pub http_max_in_flight: usize,
    /// How long webhooks are still taken after SIGTERM, while the load balancer finds out.
    #[arg(long, env = "TIDEGATE_DRAIN_DELAY", value_name = "DURATION", default_value = "5s", value_parser = config::duration)]
    pub drain_delay: Duration,
    /// Where NATS is.
    #[command(flatten)]
    pub nats: Nats,
    /// How logs look.
    #[command(flatten)]
    pub telemetry: Telemetry,
}
