//! Routes for webhooks, and routes for health and metrics.
//!
//! Every request ends in a [`Verdict`], one log line and one count.

use super::response::HttpResponse;
use crate::{
    metrics::Snapshot,
    webhook::{Pipeline, RequestContext, Verdict, WebhookRequest},
};
use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderValue, Request, Response, StatusCode, header},
    response::IntoResponse,
    routing::{get, post},
};
use shared::telemetry::Chain;
use std::{future::Future, sync::Arc, time::Instant};
use tracing::{Instrument, Level, Span, field};

const CONNECTION_ROUTE: &str = "/api/v1/webhooks/{connection}";
const SHARED_ROUTE: &str = "/slack/events";
/// Media type of the metrics page.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Returns the router for webhooks: one route per connection and one for the shared app. Both
/// accept every kind.
pub fn router(pipeline: Arc<Pipeline>) -> Router {
    Router::new()
        .route(CONNECTION_ROUTE, post(post_webhook))
        .route(SHARED_ROUTE, post(post_shared_webhook))
        .with_state(pipeline)
}

/// Returns the router of the admin listener, for the orchestrator and Prometheus.
pub fn admin_router(pipeline: Arc<Pipeline>) -> Router {
    Router::new()
        .route("/healthz", get(StatusCode::OK))
        .route("/readyz", get(get_readiness))
        .route("/metrics", get(get_metrics))
        .with_state(pipeline)
}

/// Responds 200 also without NATS: it is usually down for all ingests, and a load balancer without
/// any would answer webhooks itself, without an error message for a command's user.
async fn get_readiness(State(pipeline): State<Arc<Pipeline>>) -> StatusCode {
    if pipeline.directory.is_complete() && !pipeline.stopping.is_cancelled() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    }
}

async fn get_metrics(State(pipeline): State<Arc<Pipeline>>) -> impl IntoResponse {
    let (apps_at_risk, app_failure_ratio_max) = pipeline.app_health.summarize(Instant::now());
    let page = pipeline.metrics.render(&Snapshot {
        requests_in_flight: pipeline.max_in_flight - pipeline.in_flight.available_permits(),
        connections: pipeline.directory.connection_count(),
        directory_revision: pipeline.directory.revision().unwrap_or_default(),
        is_nats_connected: pipeline.publisher.is_connected(),
        apps_at_risk,
        app_failure_ratio_max,
    });
    ([(header::CONTENT_TYPE, OPEN_METRICS)], page)
}

async fn post_webhook(
    State(pipeline): State<Arc<Pipeline>>,
    Path(connection): Path<String>,
    request: Request<Body>,
) -> Response<Body> {
    let mut context = RequestContext::new(connection.parse().ok());
    let span = request_span(CONNECTION_ROUTE);
    let verdict = admit(&pipeline, async || {
        pipeline.process(&mut context, WebhookRequest::read(request)).await
    });
    let verdict = verdict.instrument(span.clone()).await;
    respond(&pipeline, CONNECTION_ROUTE, &context, &verdict, &span)
}

async fn post_shared_webhook(
    State(pipeline): State<Arc<Pipeline>>,
    request: Request<Body>,
) -> Response<Body> {
    let mut context = RequestContext::new(None);
    let span = request_span(SHARED_ROUTE);
    let verdict = admit(&pipeline, async || {
        pipeline.process_shared(&mut context, WebhookRequest::read(request)).await
    });
    let verdict = verdict.instrument(span.clone()).await;
    respond(&pipeline, SHARED_ROUTE, &context, &verdict, &span)
}

/// Creates the span of a request, by OpenTelemetry's conventions for HTTP servers.
fn request_span(route: &'static str) -> Span {
    tracing::info_span!(
        target: "tidegate::trace",
        "request",
        otel.name = format!("POST {route}"),
        otel.kind = "server",
        http.request.method = "POST",
        http.route = route,
        http.response.status_code = field::Empty,
        error.type = field::Empty,
    )
}

/// Processes a webhook if the limit of those in flight allows it. Rejecting at once is better than
/// answering too late.
async fn admit<F>(pipeline: &Pipeline, process: impl FnOnce() -> F) -> Verdict
where
    F: Future<Output = Result<Verdict, Verdict>>,
{
    match pipeline.in_flight.try_acquire() {
        Ok(_permit) => process().await.unwrap_or_else(|verdict| verdict),
        Err(_) => Verdict::Overloaded,
    }
}

fn respond(
    pipeline: &Pipeline,
    route: &'static str,
    context: &RequestContext,
    verdict: &Verdict,
    span: &Span,
) -> Response<Body> {
    let response = HttpResponse::new(verdict);
    let HttpResponse { status, outcome, .. } = response;
    let kind = verdict.kind().map_or("none", |kind| kind.as_str());
    pipeline.metrics.record_response(route, kind, outcome, status, context.arrived_at.elapsed());
    // Unsigned requests are not Slack's, so they do not count for the app.
    if let Some(app) = context.app().filter(|_| !matches!(verdict, Verdict::Unverified(_))) {
        pipeline.app_health.record_response(app, status.is_success(), Instant::now());
    }
    span.record("http.response.status_code", status.as_u16());
    if !status.is_success() {
        span.record("error.type", outcome);
    }
    log_webhook(context, verdict, &response);
    let mut response = response.into_http();
    if pipeline.stopping.is_cancelled() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn log_webhook(context: &RequestContext, verdict: &Verdict, response: &HttpResponse) {
    let id = context.connection.as_ref().map(|connection| connection.id);
    let connection_id = id.or(context.path_connection).map(tracing::field::display);
    let kind = verdict.kind().map(|kind| kind.as_str());
    let (outcome, status) = (response.outcome, response.status.as_u16());
    let sequence = verdict.stored().map(|stored| stored.sequence());
    let error = verdict.publish_error().map(|error| Chain(error).to_string());
    let dur_ms = context.arrived_at.elapsed().as_secs_f64() * 1e3;
    // A macro, because the level of an event must be a constant.
    macro_rules! log {
        ($level:expr) => {
            tracing::event!(
                $level,
                connection_id,
                kind,
                outcome,
                status,
                sequence,
                error,
                dur_ms,
                "webhook answered"
            )
        };
    }
    match response.level {
        Level::ERROR => log!(Level::ERROR),
        Level::WARN => log!(Level::WARN),
        _ => log!(Level::INFO),
    }
}
