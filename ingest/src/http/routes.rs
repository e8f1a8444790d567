//! Routes for webhooks, and routes for health and metrics.
//!
//! Each POST to a webhook route ends in a [`Verdict`], one log line and one count.

use super::response::HttpResponse;
use crate::{
    metrics::Snapshot,
    webhook::{Pipeline, RequestContext, Verdict, WebhookRequest, signature::SignatureError},
};
use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderValue, Method, Request, Response, StatusCode, header},
    response::IntoResponse,
    routing::get,
};
use shared::{domain::ConnectionId, runtime::telemetry::ErrorChain};
use std::{
    sync::Arc,
    time::{Instant, SystemTime},
};
use tracing::{Instrument, Level, Span, field};

const CONNECTION_ROUTE: &str = "/api/v1/webhooks/{connection}";
const SHARED_ROUTE: &str = "/slack/events";
/// Media type of the metrics page.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Returns the router for webhooks: one route per connection and one for shared apps. Both accept
/// all kinds of webhooks. [`target`] matches paths, because it is more lenient than the router.
pub fn router(pipeline: Arc<Pipeline>) -> Router {
    Router::new().fallback(post_webhook).with_state(pipeline)
}

/// Route that a path leads to.
#[derive(Debug, PartialEq, Eq)]
enum Target {
    Connection(Option<ConnectionId>),
    Shared,
}

/// Returns the route of a path. Accepts what people paste into Slack's settings: repeated and
/// trailing slashes, and an upper-case connection id.
fn target(path: &str) -> Option<Target> {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    match segments[..] {
        ["api", "v1", "webhooks", id] => {
            Some(Target::Connection(id.to_ascii_lowercase().parse().ok()))
        }
        ["slack", "events"] => Some(Target::Shared),
        _ => None,
    }
}

/// Returns the router of the admin listener, for the orchestrator and Prometheus.
pub fn admin_router(pipeline: Arc<Pipeline>) -> Router {
    Router::new()
        .route("/healthz", get(StatusCode::OK))
        .route("/readyz", get(get_readiness))
        .route("/metrics", get(get_metrics))
        .with_state(pipeline)
}

/// Responds 200, or 503 with a line per obstacle. An outage of NATS after the start is not an
/// obstacle: it usually affects all ingests, and a load balancer without backends would answer
/// webhooks itself, without an error message for the user of a command.
async fn get_readiness(State(pipeline): State<Arc<Pipeline>>) -> (StatusCode, String) {
    match obstacles(&pipeline) {
        obstacles if obstacles.is_empty() => (StatusCode::OK, String::new()),
        obstacles => (StatusCode::SERVICE_UNAVAILABLE, obstacles.join("\n") + "\n"),
    }
}

fn obstacles(pipeline: &Pipeline) -> Vec<String> {
    let (mut obstacles, servers) = (Vec::new(), &pipeline.nats_servers);
    if pipeline.stopping.is_cancelled() {
        obstacles.push("ingest is stopping".to_owned());
    }
    if !pipeline.directory.is_complete() {
        obstacles.push(match pipeline.publisher.is_connected() {
            false => format!(
                "failed to connect to NATS at {servers}; check TIDEGATE_NATS_URL, \
                 TIDEGATE_NATS_NKEY_FILE and TIDEGATE_NATS_CA_FILE"
            ),
            true => format!(
                "directory is not loaded from NATS at {servers}; check that \
                 TIDEGATE_NATS_NKEY_FILE is ingest's, and run tidegate migrate"
            ),
        });
    }
    if pipeline.directory.unseals_no_secret() {
        obstacles.push(
            "TIDEGATE_SIGNING_SECRET_KEYRING opens no signing secret of the directory; \
             set it to the keyring of the workers"
                .to_owned(),
        );
    }
    obstacles
}

async fn get_metrics(State(pipeline): State<Arc<Pipeline>>) -> impl IntoResponse {
    let (apps_at_risk, app_failure_ratio_max) = pipeline.app_health.summarize(Instant::now());
    let page = pipeline.metrics.render(&Snapshot {
        requests_in_flight: pipeline.in_flight.webhooks(),
        in_flight_bytes: pipeline.in_flight.bytes(),
        unverified_bytes: pipeline.unverified.in_use(),
        live_ingests: pipeline.directory.live_ingests(),
        quota_keys: pipeline.quotas.key_count(),
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
    request: Request<Body>,
) -> Response<Body> {
    let Some(target) = target(request.uri().path()) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    if request.method() != Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }
    let (route, connection) = match target {
        Target::Connection(id) => (CONNECTION_ROUTE, id),
        Target::Shared => (SHARED_ROUTE, None),
    };
    let mut context = RequestContext::new(connection);
    let span = request_span(route);
    #[expect(clippy::disallowed_methods, reason = "a webhook arrives")]
    let request = WebhookRequest::read(request, &pipeline.unverified, SystemTime::now());
    let verdict = async {
        match target {
            Target::Connection(_) => pipeline.process(&mut context, request).await,
            Target::Shared => pipeline.process_shared(&mut context, request).await,
        }
    };
    let verdict = verdict.instrument(span.clone()).await.unwrap_or_else(|verdict| verdict);
    respond(&pipeline, route, &context, &verdict, &span)
}

/// Creates the span of a request, following OpenTelemetry's conventions for HTTP servers.
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
    if let Verdict::Unverified(SignatureError::Stale { skew }) = verdict {
        pipeline.metrics.record_skew(*skew);
    }
    // Unverified requests may not be Slack's, so they do not count for the app.
    if let Some(app) = context.verified_app() {
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
    let error = verdict.publish_error().map(|error| ErrorChain(error).to_string());
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normalizes_paths() {
        let id = "00ff00ff00ff00ff00ff00ff00ff00ff";
        let connection = Some(Target::Connection(id.parse().ok()));
        for path in [
            format!("/api/v1/webhooks/{id}"),
            format!("/api/v1/webhooks/{id}/"),
            format!("//api/v1//webhooks/{id}//"),
            format!("/api/v1/webhooks/{}", id.to_uppercase()),
        ] {
            assert_eq!(target(&path), connection, "{path}");
        }
        for path in ["/slack/events", "/slack/events/", "//slack/events"] {
            assert_eq!(target(path), Some(Target::Shared), "{path}");
        }
        assert_eq!(target("/api/v1/webhooks/x"), Some(Target::Connection(None)));
        for path in ["/", "/slack", "/slack/events/x", "/api/v1/webhooks", "/readyz"] {
            assert_eq!(target(path), None, "{path}");
        }
    }
}
