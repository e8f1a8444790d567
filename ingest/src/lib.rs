//! Verifies Slack's webhooks and stores them in JetStream.
//!
//! ```text
//! http        listeners with timeouts, routes, and the response to each verdict
//! webhook     stages of a webhook: read, verify, classify, publish, sync response
//! directory   connection ids, status and signing secrets, followed from a NATS bucket
//! ```
//!
//! Folders import only downwards. NATS is the only service that ingest needs: the crate `shared`
//! comes without its feature `store`, so no database can get onto this path.

mod app_health;
mod config;
mod directory;
mod http;
mod metrics;
mod webhook;

pub use config::Config;
pub use http::FINISH_DEADLINE;
pub use webhook::{classify, signature};

use anyhow::Context;
use app_health::Standings;
use directory::Directory;
use metrics::Metrics;
use shared::{shutdown::Shutdown, telemetry};
use signature::SigningKey;
use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Instant};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::info;
use webhook::{Gate, Publisher, Replies};

/// Maximum HTTP connections to the admin listener: Prometheus, the orchestrator and a person.
const ADMIN_CONNECTIONS_MAX: usize = 64;

/// Runs ingest until SIGTERM, then drains and returns the exit code.
pub async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let telling = telemetry::init(&config.telemetry, "ingest")?;
    let shutdown = Shutdown::on_signal()?;
    // Serving outlives the signal: the load balancer needs a moment to look elsewhere.
    let serving = CancellationToken::new();
    let listener = bind(config.listen, "TIDEGATE_LISTEN").await?;
    let admin = bind(config.admin_listen, "TIDEGATE_ADMIN_LISTEN").await?;
    let (listen, admin_listen) = (listener.local_addr()?, admin.local_addr()?);
    info!(%listen, %admin_listen, version = env!("CARGO_PKG_VERSION"), "ingest");

    let client = config.nats.connect("ingest").await?;
    let js = shared::config::jetstream(client.clone());
    let directory = Directory::new(client.clone(), js.clone(), config.signing_secret_keyring);
    let replies = Replies::new(directory.ingest());
    let gate = Arc::new(Gate {
        directory: directory.clone(),
        publisher: Publisher::new(client.clone(), js),
        replies: replies.clone(),
        metrics: Metrics::new(&directory, telling.dropped.clone()),
        standings: Standings::new(Instant::now()),
        shared_keys: config.shared_signing_secrets.iter().map(SigningKey::new).collect(),
        in_flight: Semaphore::new(config.http_max_in_flight),
        in_flight_max: config.http_max_in_flight,
        stopping: shutdown.token().clone(),
    });
    // Ready also while NATS is away: most likely it is away for every ingest, and a balancer without any would answer in our
    // stead, with no word to a command's user.
    let ready = {
        let gate = Arc::clone(&gate);
        move || gate.directory.is_complete() && !gate.stopping.is_cancelled()
    };
    let admin_router = http::admin_router(Arc::clone(&gate), ready);
    shutdown.spawn_vital(
        "admin",
        http::serve(admin, admin_router, ADMIN_CONNECTIONS_MAX, serving.clone()),
    );
    shutdown.spawn_vital("directory", directory.clone().follow(serving.clone()));
    shutdown.spawn_vital("report", directory.clone().report(serving.clone()));
    shutdown.spawn_vital("replies", replies.hear(client, serving.clone()));

    // Until the directory is complete a connection would look unknown, so nobody is let in.
    tokio::select! { () = directory.completed() => {}, () = shutdown.requested() => {} }
    let front =
        http::serve(listener, http::router(gate), config.http_max_connections, serving.clone());
    shutdown.spawn_vital("front", front);

    shutdown.requested().await;
    tokio::time::sleep(config.drain_delay).await;
    serving.cancel();
    Ok(shutdown.drain(http::FINISH_DEADLINE).await)
}

async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{setting}: {address} can't be listened on"))
}
