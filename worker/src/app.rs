//! Wires a worker: settings, clients, stages, shutdown.
//!
//! A Rust team with its own handler in place of agents calls [`run`] from its own program; see
//! `worker/examples/own_handler.rs`.

use crate::{
    agent_client::{AgentClient, Networks},
    config::{BEYOND_GRACE, Config},
    connection_cache::ConnectionCache,
    context::{ByteBudget, Context, OwnedPartitions, PayloadCache, WorkerLease},
    decider::Decider,
    dispatch::{self, AnyHandler, DispatchMetrics, Handler, HandlerSettings},
    intake::{LeaseManager, LeaseRenewal},
    maintenance,
    metrics::Metrics,
    outbox,
    probe::Probe,
    routing::RoutingOptions,
    slack::Slack,
    usage::UsageCounters,
};
use anyhow::Context as _;
use axum::{Router, http::StatusCode, routing::get};
use shared::{
    config,
    healthcheck::Asked,
    shutdown::Shutdown,
    store::{Plans, Rings, Store},
    telemetry,
};
use std::{process::ExitCode, sync::Arc};
use tokio::{net::TcpListener, sync::Notify};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// Maximum bytes of webhooks that are read and not committed, of all partitions of a worker.
const INTAKE_BYTES_MAX: usize = 48 << 20;

/// Runs a worker until SIGTERM or SIGINT. Settings are those of the `worker` binary. With a
/// handler, all webhooks but installation events and Tidegate's commands go to the handler instead
/// of an agent.
pub fn run<H: Handler>(handler: Option<H>) -> ExitCode {
    start(handler.map(|handler| Arc::new(handler) as AnyHandler), None)
}

/// Runs a worker that calls a probe in each stage.
#[doc(hidden)]
pub fn run_with_probe<H: Handler>(handler: Option<H>, probe: Probe) -> ExitCode {
    start(handler.map(|handler| Arc::new(handler) as AnyHandler), Some(probe))
}

fn start(handler: Option<AnyHandler>, probe: Option<Probe>) -> ExitCode {
    let config: Config = match config::parse() {
        Ok(Asked::Run(config)) => config,
        Ok(Asked::Healthcheck(healthcheck)) => return healthcheck.run(),
        Err(code) => return code,
    };
    if let Err(wrong) = config.check() {
        eprintln!("{wrong}");
        return ExitCode::from(config::EX_USAGE);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime
        .context("failed to start the runtime")
        .and_then(|runtime| runtime.block_on(run_worker(config, handler, probe)));
    ended.unwrap_or_else(|error| {
        eprintln!("{error:#}");
        ExitCode::FAILURE
    })
}

async fn run_worker(
    config: Config,
    handler: Option<AnyHandler>,
    probe: Option<Probe>,
) -> anyhow::Result<ExitCode> {
    let telemetry = telemetry::init(&config.telemetry, "worker")?;
    let shutdown = Shutdown::on_signal()?;
    let name = config.worker_id.clone().unwrap_or_else(random_name);
    let admin = TcpListener::bind(config.admin_listen).await.with_context(|| {
        format!("failed to listen on {}; check TIDEGATE_ADMIN_LISTEN", config.admin_listen)
    })?;
    info!(worker = name, version = env!("CARGO_PKG_VERSION"), "worker started");

    let nats = config.nats.connect("worker").await?;
    let rings = Rings { signing: config.signing_secret_keyring, tokens: config.token_keys };
    let store = Store::new(&config.postgres, rings, Plans::Once)?;
    let options =
        RoutingOptions { slash_command: config.command.clone(), own_handler: handler.is_some() };
    let decider = Decider::new(store.clone(), options, probe);
    let connections = Arc::new(ConnectionCache::new(store.clone()));
    let slack = Slack::new(config.slack_api, config.response_url_origins, store.clone())
        .context("failed to make an HTTP client for Slack")?;
    let agents = AgentClient::new(Networks::new(config.agent_networks))
        .context("failed to make an HTTP client for agents")?;
    let mut dispatch_metrics = None;
    let metrics = Arc::new(Metrics::new(telemetry.dropped.clone(), |registry| {
        registry.register(
            "connection_cache_requests",
            "Requests for a connection, by result",
            connections.requests(),
        );
        slack.metrics.register(registry);
        agents.metrics.register(registry);
        dispatch_metrics = Some(DispatchMetrics::new(registry));
    }));
    let context = Arc::new(Context {
        store,
        nats: nats.clone(),
        slack,
        agents,
        connections: Arc::clone(&connections),
        metrics,
        usage: UsageCounters::default(),
        worker_name: name,
        worker: WorkerLease::default(),
        partitions: OwnedPartitions::default(),
        wake_dispatch: Notify::new(),
        wake_outbox: Notify::new(),
        token_expired: Arc::new(Notify::new()),
        intake_budget: ByteBudget::new(INTAKE_BYTES_MAX),
        payloads: PayloadCache::default(),
        channel_min_interval: config.channel_pace,
        slash_command: config.command,
        probe,
    });
    let js = config::jetstream(nats);
    let stop = || shutdown.token().clone();
    let leases =
        LeaseManager::new(Arc::clone(&context), js.clone(), decider.clone(), config.lease_ttl);
    // The admin server runs until the process exits: a worker that drains is alive.
    tokio::spawn(serve_admin(admin, Arc::clone(&context), leases.renewal(), stop()));
    shutdown.spawn_vital("connection changes", connections.listen(stop()));
    shutdown.spawn_vital("rate limits", context.slack.limits.clone().listen(stop()));
    let maintenance = maintenance::run(Arc::clone(&context), js, decider, config.lease_ttl, stop());
    shutdown.spawn_vital("maintenance", maintenance);
    // The worker's row must outlive the calls that run under it.
    let calls_ended = CancellationToken::new();
    let calls = {
        let (context, stop, ended) = (Arc::clone(&context), stop(), calls_ended.clone());
        let settings = HandlerSettings {
            max_concurrent: config.handlers.get(),
            timeout: config.handler_deadline,
        };
        let handler = handler.map(|handler| (handler, settings));
        let metrics = dispatch_metrics.context("metrics are registered once")?;
        async move {
            let dispatching =
                dispatch::run(Arc::clone(&context), handler, metrics, stop.clone(), config.grace);
            tokio::join!(dispatching, outbox::run(context, stop));
            ended.cancel();
        }
    };
    shutdown.spawn_vital("dispatch and outbox", calls);
    shutdown.spawn_vital("leases", leases.run(stop(), calls_ended));

    shutdown.requested().await;
    Ok(shutdown.drain(config.grace + BEYOND_GRACE).await)
}

/// Serves health and metrics until the process exits. `/healthz` needs no other service: an outage
/// of Postgres must not restart every worker. `/readyz` fails while leases are not renewed and on
/// shutdown.
async fn serve_admin(
    listener: TcpListener,
    context: Arc<Context>,
    renewal: LeaseRenewal,
    stopping: CancellationToken,
) {
    let readyz = async move || match !stopping.is_cancelled() && renewal.is_recent() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let metrics = async move || {
        let kind = [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")];
        (kind, context.metrics.render(context.intake_budget.in_use()))
    };
    let router = Router::new()
        .route("/healthz", get(async || StatusCode::OK))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics));
    if let Err(error) = axum::serve(listener, router).await {
        error!(%error, "admin server stopped");
    }
}

fn random_name() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("worker-{:08x}", RandomState::new().hash_one(0) as u32)
}
