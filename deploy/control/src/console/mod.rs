//! Console: web pages where operators and support staff find webhooks and manage running work.
//!
//! ```text
//! session   login, cookie, the caller of a request, and the token of forms
//! shell     frame of all pages, headers, errors
//! fields    query and form fields
//! lists     tables with filter, count and pages
//! webhooks  search, one webhook with its timeline and body
//! actions   confirmation and execution of operations
//! overview  first page, with charts
//! ```
//!
//! Pages are rendered on the server and need no scripts. Queries and operations are those of the
//! API: a session has the role and organization of the API key that began it.

mod actions;
mod chart;
mod fields;
mod lists;
mod overview;
mod session;
mod shell;
mod webhooks;

use crate::{
    api::Problem,
    metrics::{Metrics, Rejection},
};
use async_nats::jetstream;
use axum::{
    Router,
    extract::{DefaultBodyLimit, MatchedPath, Request, State},
    http::header,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use shared::{
    domain::Actor,
    operations::Operations,
    store::{ApiCaller, Store},
};
use shell::Failure;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, time::timeout};

/// Maximum HTTP connections of the console.
pub const MAX_CONNECTIONS: usize = 256;
/// Maximum requests in flight.
const MAX_IN_FLIGHT: usize = 64;
/// Maximum time of a request. Longer than an operation waits for ingests.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum size of a form in bytes: the selected ids of a page, and the path of the list.
const MAX_FORM_BYTES: usize = 64 * 1024;

/// Clients and limits of the console.
pub struct Console {
    store: Store,
    js: jetstream::Context,
    metrics: Arc<Metrics>,
    in_flight: Semaphore,
    logins: session::LoginLimits,
    /// True if operators may see bodies.
    reveals: bool,
}

impl Console {
    /// Creates the console.
    pub fn new(store: Store, js: jetstream::Context, metrics: Arc<Metrics>, reveals: bool) -> Self {
        Self {
            store,
            js,
            metrics,
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            logins: session::LoginLimits::default(),
            reveals,
        }
    }

    /// Returns the operations of a caller, limited to its organization.
    fn operations(&self, caller: &ApiCaller) -> Operations {
        let actor = Actor::ApiKey(caller.key.clone());
        Operations::new(self.store.clone(), actor)
            .within(caller.org.clone())
            .without_traffic_deletion()
    }
}

/// Returns the routes of the console's listener.
pub fn router(console: Arc<Console>) -> Router {
    let limited = middleware::from_fn_with_state(Arc::clone(&console), limit);
    let css = async || {
        let headers = [(header::CONTENT_TYPE, "text/css; charset=utf-8")];
        (headers, include_str!("../../assets/console.css"))
    };
    let router = Router::new()
        .route("/", get(overview::show))
        .route("/login", get(session::show_login).post(session::log_in))
        .route("/logout", post(session::log_out))
        .route("/webhooks/{key}", get(webhooks::show))
        .route("/webhooks/{key}/reveal", post(webhooks::reveal))
        .route("/webhooks/{key}/download", post(webhooks::download))
        .route("/actions/{action}", get(actions::confirm).post(actions::perform))
        .route("/console.css", get(css));
    lists::add_routes(router)
        .fallback(async || Failure(Problem::not_found("no such page")))
        .method_not_allowed_fallback(async || {
            Failure(Problem::method_not_allowed("open the page again"))
        })
        .layer(DefaultBodyLimit::max(MAX_FORM_BYTES))
        .layer(limited)
        .layer(middleware::map_response(shell::add_headers))
        .with_state(console)
}

/// Limits and measures requests.
async fn limit(State(console): State<Arc<Console>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let response = match console.in_flight.try_acquire() {
        Ok(_permit) => match timeout(REQUEST_TIMEOUT, next.run(request)).await {
            Ok(response) => response,
            Err(_) => {
                Failure(Problem::timeout("the request did not complete in time")).into_response()
            }
        },
        Err(_) => {
            console.metrics.record_rejection(Rejection::Overloaded);
            Failure(Problem::unavailable("too many requests are in flight")).into_response()
        }
    };
    let (route, method) = match &route {
        Some(route) => (route.as_str(), method.as_str()),
        None => ("unmatched", "any"),
    };
    console.metrics.record_request(method, route, response.status().as_u16(), begun.elapsed());
    response
}
