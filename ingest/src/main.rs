//! `ingest`: takes Slack's webhooks and stores them.

use anyhow::Context;
use ingest::{
    config::Config, directory::Directory, publish::Publisher, route, serve, verify::SigningKey,
};
use shared::{config, shutdown::Shutdown, telemetry};
use std::{net::SocketAddr, process::ExitCode, sync::Arc};
use tokio::{net::TcpListener, sync::Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::info;

#[tokio::main]
async fn main() -> ExitCode {
    let config: Config = match config::parse() {
        Ok(config) => config,
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
    telemetry::init(&config.telemetry)?;
    let shutdown = Shutdown::on_signal()?;
    // Serving outlives the signal: the load balancer needs a moment to look elsewhere.
    let serving = CancellationToken::new();
    let listener = bind(config.listen, "TIDEGATE_LISTEN").await?;
    let admin = bind(config.admin_listen, "TIDEGATE_ADMIN_LISTEN").await?;
    let (listen, admin_listen) = (listener.local_addr()?, admin.local_addr()?);
    info!(%listen, %admin_listen, version = env!("CARGO_PKG_VERSION"), "ingest");

    let client = config.nats.connect("ingest").await?;
    let js = config::jetstream(client.clone());
    let publisher = Publisher::new(client.clone(), js.clone());
    let directory = Directory::new(js, config.signing_keys);
    let ready = {
        let (directory, publisher, stop) =
            (directory.clone(), publisher.clone(), shutdown.token().clone());
        move || directory.is_complete() && publisher.is_connected() && !stop.is_cancelled()
    };
    shutdown.spawn_vital("health", serve::serve(admin, serve::health(ready), 64, serving.clone()));
    shutdown.spawn_vital("directory", directory.clone().follow(serving.clone()));
    shutdown.spawn_vital("report", directory.clone().report(serving.clone()));

    // Until the directory is complete a connection would look unknown, so nobody is let in.
    tokio::select! { () = directory.completed() => {}, () = shutdown.requested() => {} }
    let gate = Arc::new(route::Gate {
        directory,
        publisher,
        shared_keys: config.shared_signing_secrets.iter().map(SigningKey::new).collect(),
        in_flight: Semaphore::new(config.in_flight_max),
    });
    let front =
        serve::serve(listener, route::router(gate), config.connections_max, serving.clone());
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
