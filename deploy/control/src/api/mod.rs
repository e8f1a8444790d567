//! API under `/v1`. Its OpenAPI document, `/v1/openapi.json`, is generated from the routes.
//!
//! ```text
//! caller        API keys, roles, rate limits
//! idempotency   bodies, repeated writes
//! extract, page, problem   arguments, lists, errors
//! others        routes, a file per kind of object
//! ```
//!
//! A key of an organization reads and changes only objects of that organization. For others, the
//! response is the same as for missing ones.

mod agents;
mod apps;
mod audit_log;
mod bindings;
mod caller;
mod connection_changes;
mod connections;
mod dead_letters;
mod declarations;
mod deliveries;
mod erasures;
mod export;
mod extract;
mod failures;
mod idempotency;
mod install_links;
mod link_codes;
mod members;
mod organizations;
mod outbox_failures;
mod page;
mod problem;
mod replays;
mod stream_permit;
mod usage;
mod webhooks;

pub use caller::org_filter;
pub use page::{Page, PageQuery, unknown_cursor};
pub use problem::Problem;

use crate::metrics::Metrics;
use async_nats::jetstream;
use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    middleware::{self, Next},
    response::Response,
    routing::get,
};
use governor::{DefaultKeyedRateLimiter, Quota, clock::DefaultClock};
use shared::{
    domain::Actor,
    operations::Operations,
    store::{ApiCaller, Store},
};
use std::{
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, time::sleep};
use tokio_util::sync::CancellationToken;
use utoipa::{
    Modify, OpenApi,
    openapi::security::{Http, HttpAuthScheme, SecurityScheme},
};
use utoipa_axum::{router::OpenApiRouter, routes};

/// Interval at which the rate limits of idle keys are removed.
const IDLE_KEY_INTERVAL: Duration = Duration::from_secs(60);

/// Limits of requests.
pub struct ApiLimits {
    /// Maximum requests in flight.
    pub in_flight: usize,
    /// Maximum requests per second and key.
    pub key_rate: NonZeroU32,
    /// Maximum burst of requests of a key.
    pub key_burst: NonZeroU32,
}

/// Clients and limits of the API.
pub struct Api {
    store: Store,
    js: jetstream::Context,
    metrics: Arc<Metrics>,
    in_flight: Semaphore,
    max_in_flight: usize,
    /// Permits for writes with an idempotency key, which continue when their caller leaves.
    keyed_writes: Semaphore,
    /// Permits for streamed responses.
    streams: Arc<Semaphore>,
    keys_in_flight: caller::KeysInFlight,
    key_limits: DefaultKeyedRateLimiter<String>,
    clock: DefaultClock,
}

impl Api {
    /// Creates the API.
    pub fn new(
        store: Store,
        js: jetstream::Context,
        metrics: Arc<Metrics>,
        limits: &ApiLimits,
    ) -> Self {
        let quota = Quota::per_second(limits.key_rate).allow_burst(limits.key_burst);
        Self {
            store,
            js,
            metrics,
            in_flight: Semaphore::new(limits.in_flight),
            max_in_flight: limits.in_flight,
            keyed_writes: Semaphore::new(limits.in_flight),
            streams: Arc::new(Semaphore::new(stream_permit::MAX_STREAMS)),
            keys_in_flight: caller::KeysInFlight::default(),
            key_limits: DefaultKeyedRateLimiter::keyed(quota),
            clock: DefaultClock::default(),
        }
    }

    /// Removes the rate limits of idle keys at intervals until `stop` is cancelled.
    pub async fn remove_idle_key_limits(self: Arc<Self>, stop: CancellationToken) {
        while stop.run_until_cancelled(sleep(IDLE_KEY_INTERVAL)).await.is_some() {
            self.key_limits.retain_recent();
            self.key_limits.shrink_to_fit();
        }
    }

    /// Returns the metrics page.
    pub fn render_metrics(&self) -> String {
        self.metrics.render(self.max_in_flight - self.in_flight.available_permits())
    }

    /// Returns the operations of a caller, limited to its organization.
    fn operations(&self, caller: &ApiCaller) -> Operations {
        let actor = Actor::ApiKey(caller.key.clone());
        Operations::new(self.store.clone(), actor)
            .within(caller.org.clone())
            .without_traffic_deletion()
    }
}

type Shared = State<Arc<Api>>;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Tidegate control API",
        description = "Organizations, agents, connections, traffic and audit log of a Tidegate \
                       deployment. Errors are RFC 9457 problems. Lists are pages: pass `next` as \
                       `cursor`. Writes take an `Idempotency-Key`: a repeated request gets the \
                       response of the first one for 24 hours.",
    ),
    components(schemas(Problem, problem::LineProblem)),
    modifiers(&ApiKeyScheme),
    security(("api_key" = []))
)]
struct Description;

struct ApiKeyScheme;

impl Modify for ApiKeyScheme {
    fn modify(&self, openapi: &mut utoipa::openapi::OpenApi) {
        let components = openapi.components.get_or_insert_default();
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        components.add_security_scheme("api_key", scheme);
    }
}

/// Returns the routes and their OpenAPI document.
fn described() -> (Router<Arc<Api>>, utoipa::openapi::OpenApi) {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(organizations::list))
        .routes(routes!(organizations::get, organizations::put, organizations::delete))
        .routes(routes!(export::get))
        .routes(routes!(members::list))
        .routes(routes!(members::put, members::delete))
        .routes(routes!(erasures::list))
        .routes(routes!(erasures::get))
        .routes(routes!(erasures::erase_person))
        .routes(routes!(erasures::erase_organization))
        .routes(routes!(agents::list))
        .routes(routes!(agents::get, agents::put, agents::delete))
        .routes(routes!(agents::pause))
        .routes(routes!(agents::resume))
        .routes(routes!(declarations::apply))
        .routes(routes!(apps::list))
        .routes(routes!(apps::get))
        .routes(routes!(connections::list, connection_changes::create))
        .routes(routes!(connections::get, connection_changes::change, connection_changes::delete))
        .routes(routes!(connection_changes::rotate_signing_secret))
        .routes(routes!(connection_changes::enable_token_rotation))
        .routes(routes!(connections::enable))
        .routes(routes!(connections::disable))
        .routes(routes!(connections::pause_sending))
        .routes(routes!(connections::resume_sending))
        .routes(routes!(bindings::list))
        .routes(routes!(bindings::put, bindings::delete))
        .routes(routes!(connections::move_to))
        .routes(routes!(install_links::list, install_links::create))
        .routes(routes!(install_links::revoke))
        .routes(routes!(link_codes::list, link_codes::create))
        .routes(routes!(link_codes::revoke))
        .routes(routes!(deliveries::list))
        .routes(routes!(deliveries::retry))
        .routes(routes!(deliveries::skip))
        .routes(routes!(deliveries::cancel))
        .routes(routes!(dead_letters::list))
        .routes(routes!(dead_letters::redrive))
        .routes(routes!(dead_letters::delete))
        .routes(routes!(outbox_failures::list))
        .routes(routes!(outbox_failures::retry))
        .routes(routes!(outbox_failures::delete))
        .routes(routes!(webhooks::find))
        .routes(routes!(replays::list, replays::create))
        .routes(routes!(replays::get))
        .routes(routes!(replays::cancel))
        .routes(routes!(usage::list))
        .routes(routes!(usage::csv))
        .routes(routes!(audit_log::list))
        .split_for_parts()
}

/// Returns the router of the public listener.
pub fn router(api: Arc<Api>) -> Router {
    let (routes, description) = described();
    let description = Arc::new(description);
    let document = get(async move || axum::Json(description.as_ref().clone()));
    let keys = middleware::from_fn_with_state(Arc::clone(&api), caller::authenticate);
    let repeated = middleware::from_fn_with_state(Arc::clone(&api), idempotency::answer_repeated);
    let measured = middleware::from_fn_with_state(Arc::clone(&api), measure);
    routes
        .layer(repeated)
        .layer(keys)
        .route("/v1/openapi.json", document)
        .fallback(async || Problem::not_found("no such path; see /v1/openapi.json"))
        .method_not_allowed_fallback(async || {
            Problem::method_not_allowed("see /v1/openapi.json for the methods of this path")
        })
        .layer(measured)
        .with_state(api)
}

/// Records the duration of a request. Requests without a route share one label.
async fn measure(State(api): Shared, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let response = next.run(request).await;
    let (route, method) = match &route {
        Some(route) => (route.as_str(), method.as_str()),
        None => ("unmatched", "any"),
    };
    api.metrics.record_request(method, route, response.status().as_u16(), begun.elapsed());
    response
}

/// Defines a resource, and its conversion from the record of the store with the same fields.
macro_rules! resource {
    ($(#[$doc:meta])* $name:ident from $record:ty { $($(#[$field_doc:meta])* $field:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, serde::Serialize, utoipa::ToSchema)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $kind,)*
        }

        impl From<$record> for $name {
            fn from(record: $record) -> Self {
                Self { $($field: record.$field.into(),)* }
            }
        }
    };
}
use resource;

#[cfg(test)]
mod tests {
    use super::*;

    /// Each operation has an id, a summary, and the responses that every route may return.
    #[test]
    fn describes_every_operation() {
        let (_, description) = described();
        let description = serde_json::to_value(&description).expect("JSON");
        let paths = description["paths"].as_object().expect("paths");
        let mut ids = std::collections::BTreeSet::new();
        for (path, methods) in paths {
            assert!(path.starts_with("/v1/"), "{path}");
            for (method, operation) in methods.as_object().expect("methods") {
                let id = operation["operationId"].as_str().expect("an id");
                assert!(ids.insert(id.to_owned()), "{id} is used twice");
                assert!(operation["summary"].is_string(), "{method} {path} has no summary");
                for status in ["401", "429", "503"] {
                    let response = &operation["responses"][status];
                    assert!(response.is_object(), "{method} {path} does not describe {status}");
                }
            }
        }
        assert!(ids.len() > 30, "{ids:?}");
    }

    /// A second schema with the same name would replace the first one in the OpenAPI document.
    #[test]
    fn names_each_schema_once() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api");
        let mut names = std::collections::BTreeSet::new();
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.ends_with("mod.rs") {
                continue;
            }
            let text = std::fs::read_to_string(path).expect("a source");
            let derived = text.split("ToSchema)]").skip(1).map(|part| {
                let (_, rest) = part.split_once("\npub ").expect("a type");
                rest.split_once(' ').expect("struct or enum").1
            });
            let made = text.lines().filter_map(|line| line.split_once(" from "));
            let made = made.map(|(name, _)| name.trim()).filter(|name| !name.contains(' '));
            for rest in derived.chain(made) {
                let name: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
                assert!(names.insert(name.clone()), "{name}");
            }
        }
        assert!(names.len() > 10, "{names:?}");
    }

    /// Each handler with a `utoipa::path` attribute is a route.
    #[test]
    fn routes_every_handler() {
        let own = include_str!("mod.rs");
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/api");
        let mut handlers = 0;
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let module = path.file_stem().and_then(|stem| stem.to_str()).expect("a name");
            let text = std::fs::read_to_string(&path).expect("a source");
            if module == "mod" {
                continue;
            }
            for part in text.split("#[utoipa::path(").skip(1) {
                let (_, rest) = part.split_once("pub async fn ").expect("a handler");
                let name = rest.split('(').next().expect("a name");
                let routed = format!("{module}::{name}");
                assert!(own.contains(&routed), "{routed} is no route");
                handlers += 1;
            }
        }
        assert!(handlers > 30, "{handlers}");
    }
}
