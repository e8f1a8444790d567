//! Settings of the `ingest` binary. Each is a flag and an environment variable.

use crate::{http::HEAD_BYTES_MAX, webhook::QuotaLimits};
use clap::Parser;
use shared::{
    domain::AppId,
    runtime::{
        config::{self, NatsConfig, TelemetryConfig},
        telemetry::TRACE_SETTINGS,
    },
    secrets::{KeyRing, Secret},
    stream::BODY_BYTES_MAX,
};
use std::{net::SocketAddr, num::NonZeroU32, time::Duration};

/// Verify Slack's webhooks and store them in JetStream.
#[derive(Debug, Parser)]
#[command(name = "ingest", version, after_help = TRACE_SETTINGS)]
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
    /// Keyring of signing secrets, as k2:<base64>,k1:<base64>, file:<path> or exec:<command>; the
    /// same for ingest, workers and control.
    #[arg(
        long,
        env = "TIDEGATE_SIGNING_SECRET_KEYRING",
        value_name = "KEYRING",
        value_parser = config::parse_key_ring,
        hide_env_values = true
    )]
    pub signing_secret_keyring: KeyRing,
    /// Signing secrets of shared apps that are not declared: comma-separated <app id>:<secret> or
    /// <app id>:file:<path>, newest first. Without any and without declared apps, /slack/events
    /// responds 404.
    #[arg(
        long,
        env = "TIDEGATE_SHARED_SIGNING_SECRETS",
        value_name = "SECRETS",
        value_delimiter = ',',
        value_parser = parse_shared_signing_secret,
        hide_env_values = true
    )]
    pub shared_signing_secrets: Vec<(AppId, Secret)>,
    /// Maximum HTTP connections; others wait in the kernel's accept queue.
    #[arg(long, env = "TIDEGATE_HTTP_MAX_CONNECTIONS", value_name = "N", default_value_t = 2_500,
          value_parser = parse_connections)]
    pub http_max_connections: usize,
    /// Maximum bytes of unverified bodies, at least 2MiB; requests above it get 503.
    #[arg(
        long,
        env = "TIDEGATE_HTTP_MAX_UNVERIFIED_BYTES",
        value_name = "BYTES",
        default_value = "64MiB",
        value_parser = parse_unverified_bytes
    )]
    pub http_max_unverified_bytes: usize,
    /// Maximum verified webhooks in flight; requests above it get 503.
    #[arg(long, env = "TIDEGATE_HTTP_MAX_IN_FLIGHT", value_name = "N", default_value_t = 2_000,
          value_parser = parse_connections)]
    pub http_max_in_flight: usize,
    /// Maximum body bytes of webhooks in flight, at least 1MiB; requests above it get 503.
    #[arg(
        long,
        env = "TIDEGATE_HTTP_MAX_IN_FLIGHT_BYTES",
        value_name = "BYTES",
        default_value = "32MiB",
        value_parser = parse_in_flight_bytes
    )]
    pub http_max_in_flight_bytes: usize,
    /// Quotas per connection and workspace.
    #[command(flatten)]
    pub quota: QuotaConfig,
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
    /// Log and trace settings.
    #[command(flatten)]
    pub telemetry: TelemetryConfig,
}

/// Settings of the quotas, which all ingests share. Slack's own limit is 30,000 events per hour,
/// workspace and app.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct QuotaConfig {
    /// Maximum webhooks per second of a connection and workspace, across all ingests.
    #[arg(
        long,
        env = "TIDEGATE_QUOTA_WEBHOOKS_PER_SECOND",
        value_name = "N",
        default_value = "50",
        value_parser = parse_rate
    )]
    pub quota_webhooks_per_second: NonZeroU32,
    /// Maximum burst of webhooks of a connection and workspace.
    #[arg(
        long,
        env = "TIDEGATE_QUOTA_MAX_WEBHOOK_BURST",
        value_name = "N",
        default_value = "1000",
        value_parser = parse_rate
    )]
    pub quota_max_webhook_burst: NonZeroU32,
    /// Maximum body bytes per second of a connection and workspace, across all ingests.
    #[arg(
        long,
        env = "TIDEGATE_QUOTA_BYTES_PER_SECOND",
        value_name = "BYTES",
        default_value = "256KiB",
        value_parser = parse_byte_rate
    )]
    pub quota_bytes_per_second: NonZeroU32,
    /// Maximum burst of body bytes of a connection and workspace.
    #[arg(
        long,
        env = "TIDEGATE_QUOTA_MAX_BYTE_BURST",
        value_name = "BYTES",
        default_value = "16MiB",
        value_parser = parse_byte_rate
    )]
    pub quota_max_byte_burst: NonZeroU32,
}

impl QuotaConfig {
    /// Returns the limits.
    pub(crate) fn limits(&self) -> QuotaLimits {
        QuotaLimits {
            webhooks_per_second: self.quota_webhooks_per_second,
            webhook_burst: self.quota_max_webhook_burst,
            bytes_per_second: self.quota_bytes_per_second,
            byte_burst: self.quota_max_byte_burst,
        }
    }
}

/// Memory of the program, runtime, NATS client, and the tables of lookups, quotas and app health.
const BASE_BYTES: usize = 48 << 20;
/// Memory of a directory with 100,000 connections.
const DIRECTORY_BYTES: usize = 128 << 20;
/// Memory of an HTTP connection: buffer of the head, unsent responses, and its task.
const CONNECTION_BYTES: usize = 2 * HEAD_BYTES_MAX + 2 * HEAD_BYTES_MAX + (8 << 10);
/// Copies of a body in flight: as received, decoded, and sent up to twice to NATS.
const IN_FLIGHT_COPIES: usize = 4;

impl Config {
    /// Returns the maximum memory under these settings, in bytes. The memory limit of a container
    /// must be higher.
    pub fn memory_max(&self) -> usize {
        BASE_BYTES
            + DIRECTORY_BYTES
            + self.http_max_unverified_bytes
            + self.http_max_in_flight_bytes * IN_FLIGHT_COPIES
            + self.http_max_connections * CONNECTION_BYTES
    }
}

/// Maximum rate or burst: a quota replenishes at most one token per nanosecond.
const RATE_MAX: u64 = 1_000_000_000;

fn parse_rate(text: &str) -> Result<NonZeroU32, String> {
    parse_positive(text.parse().map_err(|_| "expected a number")?)
}

fn parse_byte_rate(text: &str) -> Result<NonZeroU32, String> {
    parse_positive(config::parse_bytes(text)?)
}

fn parse_positive(number: u64) -> Result<NonZeroU32, String> {
    let number = u32::try_from(number.min(RATE_MAX)).ok().and_then(NonZeroU32::new);
    number.ok_or_else(|| "expected more than zero".into())
}

fn parse_connections(text: &str) -> Result<usize, String> {
    config::parse_connections(text).map(|number| number as usize)
}

/// Minimum of the budget for unverified bodies, half of which is for large ones: a body of the
/// maximum size must fit.
const UNVERIFIED_BYTES_MIN: usize = 2 * BODY_BYTES_MAX;
/// Minimum of the limit of body bytes in flight: a body of the maximum size must fit.
const IN_FLIGHT_BYTES_MIN: usize = BODY_BYTES_MAX;

fn parse_unverified_bytes(text: &str) -> Result<usize, String> {
    parse_size(text, UNVERIFIED_BYTES_MIN)
}

fn parse_in_flight_bytes(text: &str) -> Result<usize, String> {
    parse_size(text, IN_FLIGHT_BYTES_MIN)
}

fn parse_size(text: &str, min: usize) -> Result<usize, String> {
    let size = usize::try_from(config::parse_bytes(text)?).map_err(|error| error.to_string())?;
    match size < min {
        true => Err(format!("expected at least {}MiB: a body has up to 1MiB", min >> 20)),
        false => Ok(size),
    }
}

/// Parses a signing secret with the app that it belongs to.
fn parse_shared_signing_secret(setting: &str) -> Result<(AppId, Secret), String> {
    let named = setting.split_once(':').filter(|(app, _)| app.starts_with('A'));
    let (app, secret) = named.ok_or("expected <app id>:<secret> or <app id>:file:<path>")?;
    let app = app.parse().map_err(|error| format!("{error}"))?;
    Ok((app, config::parse_secret(secret)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With less, every body of the maximum size gets 503.
    #[test]
    fn requires_room_for_largest_body() {
        assert_eq!(parse_unverified_bytes("2MiB"), Ok(2 << 20));
        let error = parse_unverified_bytes("2047KiB").expect_err("too small");
        assert!(error.contains("at least 2MiB"), "{error}");
        assert_eq!(parse_in_flight_bytes("1MiB"), Ok(1 << 20));
        let error = parse_in_flight_bytes("1023KiB").expect_err("too small");
        assert!(error.contains("at least 1MiB"), "{error}");
    }

    #[test]
    fn requires_app_of_shared_secret() {
        let (app, secret) = parse_shared_signing_secret("A012:0af3").expect("both");
        assert_eq!((app.as_str(), secret.expose()), ("A012", "0af3"));
        for wrong in ["0af3", "file:/run/secret", "A 1:0af3", "A012:", "A012:file:/nowhere"] {
            let error = parse_shared_signing_secret(wrong).expect_err(wrong);
            assert!(!error.contains("0af3"), "{error}");
        }
    }
}
