//! `ingest`: takes Slack's webhooks and stores them.
//!
//! One thread: an ingest scales by being one of several, and what comes together then goes to NATS together. With a thread
//! per core each webhook woke one of them, and both ingest and NATS spent a fifth to a quarter more on it.

use anyhow::Context;
use ingest::{
    config::Config, directory::Directory, gate::Gate, metrics::Metrics, publish::Publisher,
    reply::Replies, route, serve, standing::Standings, verify::SigningKey,
};
use shared::{config, healthcheck::Asked, shutdown::Shutdown, telemetry};
use std::{net::SocketAddr, process::ExitCode, sync::Arc, time::Instant};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// A webhook is some dozens of small allocations and a few of kilobytes.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Prometheus, the orchestrator, and a person.
const ADMIN_CONNECTIONS_MAX: usize = 64;

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let config: Config = match config::parse() {
        Ok(Asked::Run(config)) => config,
        Ok(Asked::Healthcheck(healthcheck)) => return healthcheck.run(),
        Err(code) => return code,
    };
    match run(config).await {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config) -> anyhow::Result<ExitCode> {
    let telling = telemetry::init(&config.telemetry, "ingest")?;
    let shutdown = Shutdown::on_signal()?;
    // Serving outlives the signal: the load balancer needs a moment to look elsewhere.
    let serving = CancellationToken::new();
    let listener = bind(config.listen, "TIDEGATE_LISTEN").await?;
    let admin = bind(config.admin_listen, "TIDEGATE_ADMIN_LISTEN").await?;
    let (listen, admin_listen) = (listener.local_addr()?, admin.local_addr()?);
    info!(%listen, %admin_listen, version = env!("CARGO_PKG_VERSION"), "ingest");

    let client = config.nats.connect("ingest").await?;
    let js = config::jetstream(client.clone());
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
    let admin_router = route::admin_router(Arc::clone(&gate), ready);
    shutdown.spawn_vital(
        "admin",
        serve::serve(admin, admin_router, ADMIN_CONNECTIONS_MAX, serving.clone()),
    );
    shutdown.spawn_vital("directory", directory.clone().follow(serving.clone()));
    shutdown.spawn_vital("report", directory.clone().report(serving.clone()));
    shutdown.spawn_vital("replies", replies.hear(client, serving.clone()));

    // Until the directory is complete a connection would look unknown, so nobody is let in.
    tokio::select! { () = directory.completed() => {}, () = shutdown.requested() => {} }
    let front =
        serve::serve(listener, route::router(gate), config.http_max_connections, serving.clone());
    shutdown.spawn_vital("front", front);

    shutdown.requested().await;
    tokio::time::sleep(config.drain_delay).await;
    serving.cancel();
    Ok(shutdown.drain(serve::FINISH_DEADLINE).await)
}

async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("{setting}: {address} can't be listened on"))
}
