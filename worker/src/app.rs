//! Builds a worker from its settings: clients, stages, shutdown.
//!
//! A Rust team that has its own handler instead of agents calls [`run`] from its own program; see
//! `worker/examples/own_handler.rs`.

use crate::{
    agent_client::{AgentClient, Networks},
    config::{BEYOND_GRACE, Config},
    connection_cache::ConnectionCache,
    context::{ByteBudget, Context, OwnedPartitions, PayloadCache, WorkerLease},
    decider::Decider,
    dispatch::{self, AnyHandler, DispatchMetrics, Handler, HandlerSettings, RunSettings},
    intake::{LeaseManager, StreamProbe},
    maintenance,
    metrics::Metrics,
    outbox,
    probe::Probe,
    readiness::{ObstacleProbe, Readiness},
    routing::RoutingOptions,
    slack::Slack,
    usage::UsageCounters,
};
use anyhow::Context as _;
use axum::{Router, http::StatusCode, routing::get};
use shared::{
    runtime::{Invocation, Shutdown, config, telemetry},
    store::{BacklogLimits, KeyRings, PlanMode, Store},
};
use std::{process::ExitCode, sync::Arc};
use tokio::{net::TcpListener, sync::Notify};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// Maximum bytes of webhooks that are read and not committed, over all partitions of a worker.
const INTAKE_BYTES_MAX: usize = 48 << 20;

/// Runs a worker until SIGTERM or SIGINT. Reads the settings of the `worker` binary. With a
/// handler, all webhooks except installation events and Tidegate's commands go to the handler
/// instead of an agent.
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
        Ok(Invocation::Run(config)) => config,
        Ok(Invocation::Healthcheck(healthcheck)) => return healthcheck.run(),
        Err(code) => return code,
    };
    if let Err(error) = config.check() {
        eprintln!("{error}");
        return ExitCode::from(config::EX_USAGE);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let result = runtime
        .context("failed to start the Tokio runtime")
        .and_then(|runtime| runtime.block_on(run_worker(config, handler, probe)));
    result.unwrap_or_else(|error| {
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
    let shutdown = Shutdown::on_signals()?;
    let name = config.worker_id.clone().unwrap_or_else(random_name);
    let admin = TcpListener::bind(config.admin_listen).await.with_context(|| {
        format!("failed to listen on {}; check TIDEGATE_ADMIN_LISTEN", config.admin_listen)
    })?;
    info!(worker = name, version = env!("CARGO_PKG_VERSION"), "worker started");

    let (nats, servers) = (config.nats.connect("worker").await?, config.nats.servers());
    let rings = KeyRings { signing: config.signing_secret_keyring, tokens: config.token_keyring };
    let store = Store::new(&config.postgres, rings, PlanMode::Once)?;
    let options = RoutingOptions {
        slash_command: config.slash_command.clone(),
        own_handler: handler.is_some(),
        handler_max_per_user: config.handler_max_per_user.get().try_into().unwrap_or(i32::MAX),
    };
    let decider = Decider::new(store.clone(), options, probe);
    let connections = Arc::new(ConnectionCache::new(store.clone()));
    let slack = Slack::new(config.slack_api_url, config.response_url_origins, store.clone())
        .context("failed to create the HTTP client for Slack")?;
    let agents = AgentClient::new(
        Networks::new(config.agent_allowed_networks),
        config.agent_stream_silence_timeout,
    )
    .context("failed to create the HTTP client for agents")?;
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
        wake_controls: Notify::new(),
        token_expired: Arc::new(Notify::new()),
        intake_budget: ByteBudget::new(INTAKE_BYTES_MAX),
        connection_bytes_max: config.stream_max_bytes_per_connection,
        payloads: PayloadCache::default(),
        channel_min_interval: config.slack_channel_min_interval,
        slash_command: config.slash_command,
        audit_log_retention: config.audit_log_retention_period,
        uninstalled_retention: config.uninstalled_retention_period,
        probe,
    });
    let js = config::jetstream(nats);
    let stop = || shutdown.token().clone();
    let (access, obstacles) =
        (StreamProbe::new(js.clone()), ObstacleProbe::new(Arc::clone(&context)));
    let leases = LeaseManager::new(
        Arc::clone(&context),
        js.clone(),
        decider.clone(),
        config.lease_ttl,
        access.access(),
    );
    let readiness = Readiness::new(&obstacles, leases.renewal(), access.access(), servers, stop());
    // A worker that drains is alive, so the admin server outlives `stop`.
    #[expect(clippy::disallowed_methods, reason = "runs until the process exits")]
    tokio::spawn(serve_admin(admin, Arc::clone(&context), readiness));
    shutdown.spawn_vital("stream access", access.run(stop()));
    shutdown.spawn_vital("obstacles", obstacles.run(stop()));
    shutdown.spawn_vital("connection changes", connections.subscribe(stop()));
    shutdown.spawn_vital("rate limits", context.slack.limits.clone().subscribe(stop()));
    let limits = BacklogLimits {
        rows: config.backlog_max_rows.get().try_into().unwrap_or(i64::MAX),
        bytes: config.backlog_max_bytes.get().try_into().unwrap_or(i64::MAX),
    };
    let maintenance =
        maintenance::run(Arc::clone(&context), js, decider, config.lease_ttl, limits, stop());
    shutdown.spawn_vital("maintenance", maintenance);
    // The row in `workers` must outlive the calls that run under it.
    let calls_ended = CancellationToken::new();
    let calls = {
        let (context, stop, ended) = (Arc::clone(&context), stop(), calls_ended.clone());
        let settings = HandlerSettings {
            max_concurrent: config.max_concurrent_handlers.get(),
            timeout: config.handler_timeout,
        };
        let handler = handler.map(|handler| (handler, settings));
        let runs = RunSettings {
            segment_period: config.streamed_message_max_age,
            append_interval: config.slack_append_min_interval,
            start_interval: config.slack_stream_min_interval,
            edit_interval: config.slack_edit_min_interval,
            max_duration: config.run_timeout,
            max_runs_per_agent: config.agent_max_runs.get(),
        };
        let metrics = dispatch_metrics.context("failed to register the metrics of dispatch")?;
        async move {
            let dispatching = dispatch::run(
                Arc::clone(&context),
                handler,
                metrics,
                runs,
                stop.clone(),
                config.shutdown_grace_period,
            );
            tokio::join!(dispatching, outbox::run(context, stop));
            ended.cancel();
        }
    };
    shutdown.spawn_vital("dispatch and outbox", calls);
    let usage = context.usage.clone();
    shutdown.spawn_vital("usage", usage.run(context.store.clone(), calls_ended.clone()));
    shutdown.spawn_vital("leases", leases.run(stop(), calls_ended));

    shutdown.requested().await;
    Ok(shutdown.drain(config.shutdown_grace_period + BEYOND_GRACE).await)
}

/// Serves health checks and metrics until the process exits. `/healthz` depends on no other
/// service: an outage of Postgres must not restart every worker. `/readyz` lists the obstacles that
/// keep the worker from working.
async fn serve_admin(listener: TcpListener, context: Arc<Context>, readiness: Readiness) {
    let readyz = async move || match readiness.obstacles() {
        obstacles if obstacles.is_empty() => (StatusCode::OK, String::new()),
        obstacles => (StatusCode::SERVICE_UNAVAILABLE, obstacles.join("\n") + "\n"),
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
