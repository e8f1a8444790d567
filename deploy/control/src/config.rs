//! Settings of the `control` binary. Each is a flag and an environment variable.

use clap::Parser;
use shared::{
    domain::parse_web_address,
    runtime::{
        config::{self, NatsConfig, PostgresConfig, TelemetryConfig},
        telemetry::TRACE_SETTINGS,
    },
    secrets::KeyRing,
};
use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

/// Serve the control API to operators' own backends.
#[derive(Debug, Parser)]
#[command(name = "control", version, after_help = TRACE_SETTINGS)]
pub struct Config {
    /// Address and port of the public HTTP listener.
    #[arg(long, env = "TIDEGATE_HTTP_LISTEN", value_name = "ADDR", default_value = "0.0.0.0:8080")]
    pub http_listen: SocketAddr,
    /// Address and port for health and metrics; not public.
    #[arg(
        long,
        env = "TIDEGATE_ADMIN_LISTEN",
        value_name = "ADDR",
        default_value = "0.0.0.0:9090"
    )]
    pub admin_listen: SocketAddr,
    /// Address and port for the console, which people log in to; not public. Without it there is no
    /// console.
    #[arg(long, env = "TIDEGATE_CONSOLE_LISTEN", value_name = "ADDR")]
    pub console_listen: Option<SocketAddr>,
    /// Let operators see webhook bodies in the console. Each view adds an entry to the audit log.
    #[arg(
        long,
        env = "TIDEGATE_CONSOLE_REVEAL",
        value_name = "BOOL",
        default_value_t = true,
        action = clap::ArgAction::Set
    )]
    pub console_reveal: bool,
    /// Keyring of tokens and agents' secrets, as k2:<base64>,k1:<base64>, file:<path> or
    /// exec:<command>; the same for workers and control.
    #[arg(
        long,
        env = "TIDEGATE_TOKEN_KEYRING",
        value_name = "KEYRING",
        value_parser = config::parse_key_ring,
        hide_env_values = true
    )]
    pub token_keyring: KeyRing,
    /// Base URL of Slack's Web API. Slack's OAuth page has the same host.
    #[arg(
        long,
        env = "TIDEGATE_SLACK_API_URL",
        value_name = "URL",
        default_value = "https://slack.com/api/"
    )]
    pub slack_api_url: reqwest::Url,
    /// Keyring of signing secrets, as k2:<base64>,k1:<base64>, file:<path> or exec:<command>; the
    /// same for ingest, workers and control. Without it control creates and changes no connection.
    #[arg(
        long,
        env = "TIDEGATE_SIGNING_SECRET_KEYRING",
        value_name = "KEYRING",
        value_parser = config::parse_key_ring,
        hide_env_values = true
    )]
    pub signing_secret_keyring: Option<KeyRing>,
    /// Maximum HTTP connections; others wait in the kernel's accept queue.
    #[arg(long, env = "TIDEGATE_HTTP_MAX_CONNECTIONS", value_name = "N", default_value_t = 1_000,
          value_parser = parse_connections)]
    pub http_max_connections: usize,
    /// Maximum requests in flight; requests above it get 503.
    #[arg(long, env = "TIDEGATE_HTTP_MAX_IN_FLIGHT", value_name = "N", default_value_t = 128,
          value_parser = parse_connections)]
    pub http_max_in_flight: usize,
    /// Maximum requests per second of one API key, per process; requests above it get 429.
    #[arg(long, env = "TIDEGATE_API_KEY_MAX_RATE", value_name = "N", default_value = "50")]
    pub api_key_max_rate: NonZeroU32,
    /// Maximum burst of requests of one API key.
    #[arg(long, env = "TIDEGATE_API_KEY_MAX_BURST", value_name = "N", default_value = "200")]
    pub api_key_max_burst: NonZeroU32,
    /// Time after SIGTERM for which requests are still accepted, so that load balancers can react.
    #[arg(
        long,
        env = "TIDEGATE_DRAIN_PERIOD",
        value_name = "DURATION",
        default_value = "5s",
        value_parser = config::parse_duration
    )]
    pub drain_period: Duration,
    /// NATS settings.
    #[command(flatten)]
    pub nats: NatsConfig,
    /// Postgres settings.
    #[command(flatten)]
    pub postgres: PostgresConfig,
    /// Log and trace settings.
    #[command(flatten)]
    pub telemetry: TelemetryConfig,
}

impl Config {
    /// Fails if a setting is unsafe.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            parse_web_address(self.slack_api_url.as_str()).is_some(),
            "TIDEGATE_SLACK_API_URL is unsafe: use https; only a simulator on this machine may use \
             http"
        );
        Ok(())
    }
}

fn parse_connections(text: &str) -> Result<usize, String> {
    config::parse_connections(text).map(|number| number as usize)
}
