//! HTTP in, HTTP out: the two routes, and the routes of those who watch.
//!
//! In: a POST. Out: what [`crate::http::response`] says of the verdict. Every way out is a verdict, and every verdict is one
//! log line and one count. Knows paths; knows nothing of Slack's JSON.

use crate::{
    http::response::{Answer, answer},
    webhook::Incoming,
    webhook::Verdict,
    webhook::{Gate, Trail},
};
use axum::{
    Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderValue, Request, Response, StatusCode, header},
    routing::{get, post},
};
use shared::{telemetry::Chain, types::ConnectionId};
use std::{future::Future, sync::Arc};
use tokio::time::Instant;
use tracing::{Instrument, Level, Span, field};

const CONNECTION_ROUTE: &str = "/api/v1/webhooks/{connection}";
const SHARED_ROUTE: &str = "/slack/events";
/// What the page of metrics is, by Prometheus's own name for it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The two routes. Both take every kind.
pub fn router(gate: Arc<Gate>) -> Router {
    Router::new()
        .route(CONNECTION_ROUTE, post(for_connection))
        .route(SHARED_ROUTE, post(for_shared_app))
        .with_state(gate)
}

/// For the orchestrator and Prometheus, on a listener of their own: alive while the process turns, ready while `ready`
/// says so.
pub fn admin_router(
    gate: Arc<Gate>,
    ready: impl Fn() -> bool + Clone + Send + Sync + 'static,
) -> Router {
    let readyz =
        async move || if ready() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Router::new()
        .route("/healthz", get(async || StatusCode::OK))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(gate)
}

async fn metrics(State(gate): State<Arc<Gate>>) -> Response<Body> {
    let in_flight = gate.in_flight_max - gate.in_flight.available_permits();
    let page = gate.metrics.page(&gate.directory, &gate.publisher, &gate.standings, in_flight);
    let mut response = Response::new(Body::from(page));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
    response
}

async fn for_connection(
    State(gate): State<Arc<Gate>>,
    Path(connection): Path<String>,
    request: Request<Body>,
) -> Response<Body> {
    let mut trail = trail(connection.parse().ok());
    let span = span(CONNECTION_ROUTE);
    let passing =
        bounded(&gate, async || gate.for_connection(&mut trail, Incoming::read(request)).await);
    let verdict = passing.instrument(span.clone()).await;
    finish(&gate, CONNECTION_ROUTE, &trail, verdict, &span)
}

async fn for_shared_app(State(gate): State<Arc<Gate>>, request: Request<Body>) -> Response<Body> {
    let mut trail = trail(None);
    let span = span(SHARED_ROUTE);
    let passing =
        bounded(&gate, async || gate.for_shared_app(&mut trail, Incoming::read(request)).await);
    let verdict = passing.instrument(span.clone()).await;
    finish(&gate, SHARED_ROUTE, &trail, verdict, &span)
}

/// The request, as OpenTelemetry's conventions for HTTP servers have it.
fn span(route: &'static str) -> Span {
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

fn trail(named: Option<ConnectionId>) -> Trail {
    Trail { arrived: Instant::now(), named, connection: None, routed_app: None }
}

/// Lets a webhook in when there is room: to refuse at once is better than to be late.
async fn bounded<F>(gate: &Gate, pass: impl FnOnce() -> F) -> Verdict
where
    F: Future<Output = Result<Verdict, Verdict>>,
{
    match gate.in_flight.try_acquire() {
        Ok(_permit) => pass().await.unwrap_or_else(|refusal| refusal),
        Err(_) => Verdict::Overloaded,
    }
}

fn finish(
    gate: &Gate,
    route: &'static str,
    trail: &Trail,
    verdict: Verdict,
    span: &Span,
) -> Response<Body> {
    let answer = answer(&verdict);
    let kind = verdict.kind().map_or("none", |kind| kind.as_str());
    gate.metrics.answered(route, kind, &answer, trail.arrived.elapsed());
    // What Slack did not sign says nothing of Slack's view of the app.
    if let Some(app) = trail.app().filter(|_| !matches!(verdict, Verdict::Unverified(_))) {
        gate.standings.answered(app, answer.status.is_success(), std::time::Instant::now());
    }
    span.record("http.response.status_code", answer.status.as_u16());
    if !answer.status.is_success() {
        span.record("error.type", answer.label);
    }
    log(trail, &verdict, &answer);
    let mut response = answer.into_response();
    if gate.stopping.is_cancelled() {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn log(trail: &Trail, verdict: &Verdict, answer: &Answer) {
    let id = trail.connection.as_ref().map(|connection| connection.id).or(trail.named);
    let connection_id = id.map(tracing::field::display);
    let (kind, outcome, status) =
        (verdict.kind().map(|kind| kind.as_str()), answer.label, answer.status.as_u16());
    let sequence = verdict.stored().map(|stored| stored.sequence());
    let error = verdict.not_stored().map(|error| Chain(error).to_string());
    let dur_ms = trail.arrived.elapsed().as_secs_f64() * 1e3;
    // The level of an event is fixed when it is compiled, hence the macro.
    macro_rules! line {
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
                "webhook"
            )
        };
    }
    match answer.level {
        Level::ERROR => line!(Level::ERROR),
        Level::WARN => line!(Level::WARN),
        _ => line!(Level::INFO),
    }
}
