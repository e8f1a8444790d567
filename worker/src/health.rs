//! What a worker says of itself, on a listener of its own: alive, ready, and its figures.
//!
//! In: requests of an orchestrator, of Prometheus, of a person. Out: `/healthz` (the process answers; it looks at nothing
//! outside, or an outage of Postgres would become a restart of everything), `/readyz` (leases could be renewed lately and
//! we don't stop), `/metrics`.

use crate::{Workshop, lease::Renewed};
use axum::{Router, http::StatusCode, routing::get};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::error;

/// Serves for as long as the process lives; not ready any more once it stops.
pub async fn run(
    listener: TcpListener,
    workshop: Arc<Workshop>,
    renewed: Renewed,
    stopping: CancellationToken,
) {
    let readyz = async move || match !stopping.is_cancelled() && renewed.lately() {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    };
    let metrics = async move || {
        let kind = [("content-type", "application/openmetrics-text; version=1.0.0; charset=utf-8")];
        (kind, workshop.metrics.page(workshop.breaker.is_open()))
    };
    let router = Router::new()
        .route("/healthz", get(async || StatusCode::OK))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics));
    if let Err(error) = axum::serve(listener, router).await {
        error!(%error, "health can't be told any more");
    }
}
