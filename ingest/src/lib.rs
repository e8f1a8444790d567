//! Verification of Slack's webhooks and their storage in JetStream.
//!
//! ```text
//! http        listeners with timeouts, routes, and the response to each verdict
//! webhook     stages of a webhook: read, verify, classify, publish, sync response
//! directory   connection ids, status and signing secrets, followed from a NATS bucket
//! ```
//!
//! Folders import only downwards. NATS is the only service that ingest needs. Ingest cannot use
//! Postgres: it depends on the crate `shared` without the feature `store`.

#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod app_health;
mod config;
mod directory;
mod http;
mod metrics;
mod webhook;

pub use config::Config;
pub use http::{FINISH_TIMEOUT, HEAD_BYTES_MAX};
pub use webhook::{classify, signature};

use anyhow::Context;
use app_health::AppHealth;
use directory::{Directory, SigningKey};
use governor::clock::DefaultClock;
use metrics::Metrics;
use shared::runtime::{Shutdown, config::jetstream, telemetry};
use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Instant};
use tokio::net::{TcpListener, TcpSocket};
use tokio_util::sync::CancellationToken;
use tracing::info;
use webhook::{InFlightLimit, Pipeline, Publisher, Quotas, SyncResponses, UnverifiedBudget};

/// Maximum HTTP connections of the admin listener: Prometheus, the orchestrator and a person.
const MAX_ADMIN_CONNECTIONS: usize = 64;
/// Size of the kernel's send buffer of an HTTP connection, which the kernel doubles. Responses are
/// small; by default the kernel buffers megabytes for a peer that does not read.
const SEND_BUFFER_BYTES: u32 = 64 * 1024;
/// Maximum HTTP connections in the kernel's accept queue. Linux caps it at `net.core.somaxconn`.
const LISTEN_BACKLOG: u32 = 1024;

/// Runs ingest until SIGTERM, drains it and returns the exit code.
pub async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let telemetry = telemetry::init(&config.telemetry, "ingest")?;
    let shutdown = Shutdown::on_signals()?;
    // Cancelled later than `shutdown`: until then the load balancer may still send webhooks.
    let stop = CancellationToken::new();
    let listener = bind(config.http_listen, "TIDEGATE_HTTP_LISTEN")?;
    let admin = bind(config.admin_listen, "TIDEGATE_ADMIN_LISTEN")?;
    let (listen, admin_listen) = (listener.local_addr()?, admin.local_addr()?);
    info!(%listen, %admin_listen, version = env!("CARGO_PKG_VERSION"), "ingest started");

    let (nats, nats_servers) = (config.nats.connect("ingest").await?, config.nats.servers());
    let js = jetstream(nats.clone());
    let quotas = Quotas::new(config.quota.limits(), DefaultClock::default());
    let directory = Directory::new(nats.clone(), js.clone(), config.signing_secret_keyring);
    let sync_responses = SyncResponses::new(directory.ingest_name());
    let pipeline = Arc::new(Pipeline {
        directory: directory.clone(),
        publisher: Publisher::new(nats.clone(), js),
        sync_responses: sync_responses.clone(),
        metrics: Metrics::new(directory.cache_misses(), telemetry.dropped.clone()),
        app_health: AppHealth::new(Instant::now()),
        shared_keys: config
            .shared_signing_secrets
            .into_iter()
            .map(|(app, secret)| (app, SigningKey::new(&secret)))
            .collect(),
        unverified: UnverifiedBudget::new(config.http_max_unverified_bytes),
        in_flight: InFlightLimit::new(config.http_max_in_flight, config.http_max_in_flight_bytes),
        quotas,
        nats_servers,
        stopping: shutdown.token().clone(),
    });
    let admin_router = http::admin_router(Arc::clone(&pipeline));
    let admin_server = http::serve(admin, admin_router, MAX_ADMIN_CONNECTIONS, stop.clone());
    shutdown.spawn_vital("admin server", admin_server);
    shutdown.spawn_vital("directory", directory.clone().follow(stop.clone()));
    shutdown.spawn_vital("directory report", directory.clone().report_revision(stop.clone()));
    shutdown.spawn_vital("live ingests", directory.clone().count_ingests(stop.clone()));
    let quotas = (Arc::clone(&pipeline), stop.clone());
    shutdown.spawn_vital("quotas", async move { quotas.0.quotas.report(quotas.1).await });
    shutdown.spawn_vital("sync responses", sync_responses.listen(nats, stop.clone()));

    // Before the directory is complete, webhooks of existing connections would get 404.
    tokio::select! {
        () = directory.wait_until_complete() => {}
        () = shutdown.requested() => {}
    }
    let router = http::router(pipeline);
    let server = http::serve(listener, router, config.http_max_connections, stop.clone());
    shutdown.spawn_vital("webhook server", server);

    shutdown.requested().await;
    tokio::time::sleep(config.drain_period).await;
    stop.cancel();
    Ok(shutdown.drain(FINISH_TIMEOUT).await)
}

fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    let listen = || {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
        socket.bind(address)?;
        socket.listen(LISTEN_BACKLOG)
    };
    listen().with_context(|| format!("failed to listen on {address}; check {setting}"))
}
