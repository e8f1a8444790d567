//! Settings of the `ingest` binary. Each is a flag and an environment variable.

use clap::Parser;
use shared::{
    config::{self, Nats, Telemetry},
    secrets::{KeyRing, Secret},
};
use std::{net::SocketAddr, time::Duration};

/// Verify Slack's webhooks and store them in JetStream.
#[derive(Debug, Parser)]
#[command(name = "ingest", version)]
pub struct Config {
    /// Address and port for Slack's webhooks.
    #[arg(long, env = "TIDEGATE_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Address and port for health and metrics; not for the public.
    #[arg(
        long,
        env = "TIDEGATE_ADMIN_LISTEN",
        value_name = "ADDR",
        default_value = "0.0.0.0:9090"
    )]
    pub admin_listen: SocketAddr,
    /// Keyring that unseals signing secrets, as k2:<base64>,k1:<base64> or file:<path>; the same as
    /// that of the workers.
    #[arg(
        long,
        env = "TIDEGATE_SIGNING_SECRET_KEYRING",
        value_name = "KEYRING",
        value_parser = config::key_ring,
        hide_env_values = true
    )]
    pub signing_secret_keyring: KeyRing,
    /// Signing secrets of the shared app, newest first, comma-separated or file:<path>; without
    /// any, /slack/events is closed.
    #[arg(
        long,
        env = "TIDEGATE_SHARED_SIGNING_SECRETS",
        value_name = "SECRETS",
        value_delimiter = ',',
        value_parser = config::secret,
        hide_env_values = true
    )]
    pub shared_signing_secrets: Vec<Secret>,
    /// Maximum HTTP connections; more wait in the kernel's queue.
    #[arg(long, env = "TIDEGATE_HTTP_MAX_CONNECTIONS", value_name = "N", default_value_t = 10_000)]
    pub http_max_connections: usize,
    /// Maximum webhooks in flight; more are answered 503.
    #[arg(long, env = "TIDEGATE_HTTP_MAX_IN_FLIGHT", value_name = "N", default_value_t = 2_000)]
    pub http_max_in_flight: usize,
    /// Time that webhooks are still accepted after SIGTERM, until the load balancer has noticed.
    #[arg(
        long,
        env = "TIDEGATE_DRAIN_DELAY",
        value_name = "DURATION",
        default_value = "5s",
        value_parser = config::duration
    )]
    pub drain_delay: Duration,
    /// NATS settings.
    #[command(flatten)]
    pub nats: Nats,
    /// Log and trace settings.
    #[command(flatten)]
    pub telemetry: Telemetry,
}
