//! The `main` of a worker: settings, start, the wait for the end.
//!
//! In: a handler. Out: an exit code. A Rust team that wants its own code in place of agents writes a program of its own
//! that calls [`main`]; `worker/examples/own_handler.rs` is one.

use crate::{
    Workshop,
    agent::{Agents, address::Networks},
    breaker::Breaker,
    config::{BEYOND_GRACE, Config},
    group::Groups,
    handle::{AnyHandler, Handler},
    health,
    hydrate::Hydrator,
    lease::Leases,
    metrics::Metrics,
    refusals::Refusals,
    replay,
    seen::Seen,
    settle::Settling,
    slack::{Slack, rotate},
    slots::Slots,
};
use anyhow::Context;
use shared::{
    config,
    healthcheck::Asked,
    shutdown::Shutdown,
    store::{Rings, Store},
    telemetry,
};
use std::{process::ExitCode, sync::Arc};
use tokio::{net::TcpListener, sync::Notify};
use tracing::info;

/// Runs a worker until it is told to stop. Settings are those of the `worker` binary: `--help` tells them.
pub fn main(handler: impl Handler) -> ExitCode {
    let config: Config = match config::parse() {
        Ok(Asked::Run(config)) => config,
        Ok(Asked::Healthcheck(healthcheck)) => return healthcheck.run(),
        Err(code) => return code,
    };
    if let Err(wrong) = config.check() {
        eprintln!("{wrong}");
        return ExitCode::from(config::EX_USAGE);
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("the runtime does not start: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(run(config, AnyHandler::new(handler))) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(config: Config, handler: AnyHandler) -> anyhow::Result<ExitCode> {
    let telling = telemetry::init(&config.telemetry, "worker")?;
    let shutdown = Shutdown::on_signal()?;
    let worker = config.worker_id.clone().unwrap_or_else(made_up_name);
    let admin = TcpListener::bind(config.admin_listen).await.with_context(|| {
        format!("TIDEGATE_ADMIN_LISTEN: {} can't be listened on", config.admin_listen)
    })?;
    info!(worker, version = env!("CARGO_PKG_VERSION"), "worker");

    let nats = config.nats.connect("worker").await?;
    let rings = Rings { signing: config.signing_keys, tokens: config.token_keys };
    let store = Store::new(&config.postgres, rings)?;
    let hydrator = Arc::new(Hydrator::new(store.clone()));
    let slack = Slack::new(
        config.slack_api,
        config.response_url_origins,
        store.clone(),
        config.channel_pace,
    )
    .context("an HTTP client for Slack")?;
    let token_is_over = Arc::new(Notify::new());
    let agents =
        Agents::new(Networks::new(config.agent_networks)).context("an HTTP client for agents")?;
    let metrics =
        Arc::new(Metrics::new(&hydrator, &slack.counted, &agents.counted, telling.dropped.clone()));
    let workshop = Arc::new(Workshop {
        store: store.clone(),
        nats: nats.clone(),
        slack: slack.clone(),
        token_is_over: Arc::clone(&token_is_over),
        refusals: Refusals::default(),
        agents,
        handler,
        handler_deadline: config.handler_deadline,
        command: config.command,
        slots: Slots::new(config.handlers.get()),
        hydrator: Arc::clone(&hydrator),
        breaker: Breaker::default(),
        seen: Seen::new(store.clone()),
        settling: Settling::new(store.clone()),
        groups: Groups::new(store.clone(), Arc::clone(&metrics)),
        metrics,
    });
    let js = config::jetstream(nats);
    shutdown.spawn_vital("changes", hydrator.listen(shutdown.token().clone()));
    let stop = || shutdown.token().clone();
    shutdown.spawn_vital("limits", slack.limits.clone().listen(stop()));
    shutdown.spawn_vital("tokens", rotate::run(store, slack, token_is_over, stop()));
    let replays = replay::run(
        Arc::clone(&workshop),
        js.clone(),
        worker.clone(),
        config.lease_ttl,
        shutdown.token().clone(),
    );
    shutdown.spawn_vital("replays", replays);
    let leases = Leases::new(Arc::clone(&workshop), js, worker, config.lease_ttl);
    // Told until the very end: a worker that drains is alive.
    tokio::spawn(health::run(admin, workshop, leases.renewed(), stop()));
    shutdown.spawn_vital("leases", leases.run(shutdown.token().clone(), config.grace));

    shutdown.requested().await;
    Ok(shutdown.drain(config.grace + BEYOND_GRACE).await)
}

fn made_up_name() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("worker-{:08x}", RandomState::new().hash_one(0) as u32)
}
