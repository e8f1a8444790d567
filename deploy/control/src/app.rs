//! Wiring of the control API: settings, clients, listeners, shutdown.

use crate::{
    api::{self, Api, ApiLimits},
    config::Config,
    console::{self, Console},
    install::{self, Installer, Slack},
    metrics::Metrics,
    server::{self, FINISH_TIMEOUT},
};
use anyhow::Context;
use axum::{Router, http::StatusCode, routing::get};
use shared::{
    runtime::{
        Shutdown,
        config::jetstream,
        telemetry::{self, ErrorChain},
    },
    store::{KeyRings, PlanMode, Store},
};
use std::{
    net::SocketAddr,
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, time::sleep};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Maximum HTTP connections of the admin listener: Prometheus, the orchestrator and a person.
const MAX_ADMIN_CONNECTIONS: usize = 64;
/// Interval at which Postgres is probed.
const PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Runs the API until SIGTERM, drains it and returns the exit code.
pub async fn run(config: Config) -> anyhow::Result<ExitCode> {
    config.check()?;
    let telemetry = telemetry::init(&config.telemetry, "control")?;
    let shutdown = Shutdown::on_signals()?;
    // Cancelled later than `shutdown`: until then the load balancer may still send requests.
    let stop = CancellationToken::new();
    let listener = bind(config.http_listen, "TIDEGATE_HTTP_LISTEN").await?;
    let admin = bind(config.admin_listen, "TIDEGATE_ADMIN_LISTEN").await?;
    let (listen, admin_listen) = (listener.local_addr()?, admin.local_addr()?);
    info!(%listen, %admin_listen, version = env!("CARGO_PKG_VERSION"), "control started");

    let js = jetstream(config.nats.connect("control").await?);
    let rings = KeyRings {
        signing: config.signing_secret_keyring.unwrap_or_default(),
        tokens: config.token_keyring,
    };
    let store = Store::new(&config.postgres, rings, PlanMode::PerCall)?;
    let metrics = Arc::new(Metrics::new(telemetry.dropped.clone()));
    let limits = ApiLimits {
        in_flight: config.http_max_in_flight,
        key_rate: config.api_key_max_rate,
        key_burst: config.api_key_max_burst,
    };
    let slack =
        Slack::new(config.slack_api_url).context("failed to create HTTP client for Slack")?;
    let installer = Installer::new(store.clone(), js.clone(), slack, Arc::clone(&metrics));
    let installer = Arc::new(installer);
    if let Some(address) = config.console_listen {
        let listener = bind(address, "TIDEGATE_CONSOLE_LISTEN").await?;
        info!(listen = %listener.local_addr()?, "console started");
        let reveals = config.console_reveal;
        let console = Console::new(store.clone(), js.clone(), Arc::clone(&metrics), reveals);
        let router = console::router(Arc::new(console));
        let most = console::MAX_CONNECTIONS;
        let server = server::serve(listener, router, most, stop.clone());
        shutdown.spawn_vital("console", server);
    }
    let api = Arc::new(Api::new(store.clone(), js, Arc::clone(&metrics), &limits));
    let is_reachable = Arc::new(AtomicBool::new(false));
    let admin_router =
        admin_router(Arc::clone(&api), Arc::clone(&is_reachable), shutdown.token().clone());
    let admin_server = server::serve(admin, admin_router, MAX_ADMIN_CONNECTIONS, stop.clone());
    shutdown.spawn_vital("admin server", admin_server);
    shutdown.spawn_vital("probe", probe(store, metrics, is_reachable, stop.clone()));
    shutdown.spawn_vital("rate limits", Arc::clone(&api).remove_idle_key_limits(stop.clone()));
    let router = api::router(api).merge(install::router(installer));
    let server = server::serve(listener, router, config.http_max_connections, stop.clone());
    shutdown.spawn_vital("API server", server);

    shutdown.requested().await;
    sleep(config.drain_period).await;
    stop.cancel();
    Ok(shutdown.drain(FINISH_TIMEOUT).await)
}

/// Returns the routes of the admin listener. `/healthz` checks nothing outside the process, so that
/// an outage causes no restarts. `/readyz` fails while Postgres is unreachable, and on shutdown.
fn admin_router(
    api: Arc<Api>,
    is_reachable: Arc<AtomicBool>,
    stopping: CancellationToken,
) -> Router {
    let readyz =
        async move || match !stopping.is_cancelled() && is_reachable.load(Ordering::Relaxed) {
            true => StatusCode::OK,
            false => StatusCode::SERVICE_UNAVAILABLE,
        };
    let metrics = async move || {
        let kind = [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")];
        (kind, api.render_metrics())
    };
    Router::new()
        .route("/healthz", get(async || StatusCode::OK))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
}

/// Probes Postgres until `stop` is cancelled. Logs the first result and each change.
async fn probe(
    store: Store,
    metrics: Arc<Metrics>,
    is_reachable: Arc<AtomicBool>,
    stop: CancellationToken,
) {
    let probing = async {
        let mut known = None;
        loop {
            let answered = store.server_facts().await;
            is_reachable.store(answered.is_ok(), Ordering::Relaxed);
            metrics.record_postgres(answered.is_ok());
            let has_changed = known.replace(answered.is_ok()) != Some(answered.is_ok());
            match answered {
                Ok(_) if has_changed => info!("Postgres reachable"),
                Err(error) if has_changed => {
                    warn!(error = %ErrorChain(&error), "Postgres unreachable");
                }
                _ => {}
            }
            sleep(PROBE_INTERVAL).await;
        }
    };
    stop.run_until_cancelled(probing).await;
}

async fn bind(address: SocketAddr, setting: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("failed to listen on {address}; check {setting}"))
}
