//! Verification of Slack's webhooks and their storage in JetStream.
//!
//! ```text
//! http        listeners with timeouts, routes, and the response to each verdict
//! webhook     stages of a webhook: read, verify, classify, publish, sync response
//! directory   connection ids, status and signing secrets, followed from a NATS bucket
//! ```
//!
//! Folders import only downwards. NATS is the only service that ingest needs. No database can get
//! onto this path: the crate `shared` comes without its feature `store`.

mod app_health;
mod config;
mod directory;
mod http;
mod metrics;
mod webhook;

pub use config::Config;
pub use http::FINISH_TIMEOUT;
pub use webhook::{classify, signature};

use anyhow::Context;
use app_health::AppHealth;
use directory::{Directory, SigningKey};
use metrics::Metrics;
use shared::{config::jetstream, shutdown::Shutdown, telemetry};
use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Instant};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::info;
use webhook::{Pipeline, Publisher, SyncResponses};

/// Maximum HTTP connections of the admin listener: Prometheus, the orchestrator and a person.
const MAX_ADMIN_CONNECTIONS: usize = 64;

/// Runs ingest until SIGTERM, drains it and returns the exit code.
pub async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let telemetry = telemetry::init(&config.telemetry, "ingest")?;
    let shutdown = Shutdown::on_signal()?;
    // Cancelled later than `shutdown`: until then the load balancer may still send webhooks.
    let stop = CancellationToken::new();
    let listener = bind(config.listen, "TIDEGATE_LISTEN").await?;
    let admin = bind(config.admin_listen, "TIDEGATE_ADMIN_LISTEN").await?;
    let (listen, admin_listen) = (listener.local_addr()?, admin.local_addr()?);
    info!(%listen, %admin_listen, version = env!("CARGO_PKG_VERSION"), "ingest started");

    let nats = config.nats.connect("ingest").await?;
    let js = jetstream(nats.clone());
    let directory = Directory::new(nats.clone(), js.clone(), config.signing_secret_keyring);
    let sync_responses = SyncResponses::new(directory.ingest_name());
    let pipeline = Arc::new(Pipeline {
        directory: directory.clone(),
        publisher: Publisher::new(nats.clone(), js),
        sync_responses: sync_responses.clone(),
        metrics: Metrics::new(directory.cache_misses(), telemetry.dropped.clone()),
        app_health: AppHealth::new(Instant::now()),
        shared_keys: config.shared_signing_secrets.iter().map(SigningKey::new).collect(),
        in_flight: Semaphore::new(config.http_max_in_flight),
        max_in_flight: config.http_max_in_flight,
        stopping: shutdown.token().clone(),
    });
    let admin_router = http::admin_router(Arc::clone(&pipeline));
    let admin_server = http::serve(admin, admin_router, MAX_ADMIN_CONNECTIONS, stop.clone());
    shutdown.spawn_vital("admin server", admin_server);
    shutdown.spawn_vital("directory", directory.clone().follow(stop.clone()));
    shutdown.spawn_vital("directory report", directory.clone().report_revision(stop.clone()));
    shutdown.spawn_vital("sync responses", sync_responses.listen(nats, stop.clone()));

    // Before the directory is complete, a connection would seem unknown.
    tokio::select! {
        () = directory.wait_until_complete() => {}
        () = shutdown.requested() => {}
    }
    let router = http::router(pipeline);
    let server = http::serve(listener, router, config.http_max_connections, stop.clone());
    shutdown.spawn_vital("webhook server", server);

    shutdown.requested().await;
    tokio::time::sleep(config.drain_delay).await;
    stop.cancel();
    Ok(shutdown.drain(FINISH_TIMEOUT).await)
}

async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("failed to listen on {address}; check {setting}"))
}
