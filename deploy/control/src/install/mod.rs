//! Installation of apps by OAuth: the page of an install link, Slack's redirect, and the result.
//!
//! ```text
//! oauth     requests: start page, begin, callback
//! browser   cookies, and the origin of a form
//! pages     HTML pages and their headers
//! slack     client of Slack's OAuth
//! ```
//!
//! The button on a link's page leads to Slack. It creates a `state` that is stored as a hash, taken
//! once, valid for ten minutes, and bound to a cookie. The code verifier of PKCE is derived from
//! state and cookie. A browser that Slack redirects back without a state gets the page again: a
//! code alone is never exchanged.

mod browser;
mod oauth;
mod pages;
mod slack;

pub use pages::STYLE;
pub use slack::Slack;

use crate::metrics::{Metrics, Rejection};
use async_nats::jetstream;
use axum::{
    Router,
    extract::{MatchedPath, Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::get,
};
use pages::Message;
use shared::{domain::OAUTH_CALLBACK_PATH, store::Store};
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{sync::Semaphore, time::timeout};

/// Maximum requests of browsers in flight. An installation waits for Slack and for the ingests.
const MAX_IN_FLIGHT: usize = 256;
/// Maximum time of a request. Longer than two calls to Slack and the wait for ingests.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);

/// Clients and limits of installations.
pub struct Installer {
    store: Store,
    js: jetstream::Context,
    slack: Slack,
    metrics: Arc<Metrics>,
    in_flight: Semaphore,
}

impl Installer {
    /// Creates the installer.
    pub fn new(store: Store, js: jetstream::Context, slack: Slack, metrics: Arc<Metrics>) -> Self {
        Self { store, js, slack, metrics, in_flight: Semaphore::new(MAX_IN_FLIGHT) }
    }
}

/// Returns the routes for browsers.
pub fn router(installer: Arc<Installer>) -> Router {
    let limited = middleware::from_fn_with_state(Arc::clone(&installer), limit);
    Router::new()
        .route("/install/{link}", get(oauth::start).post(oauth::begin))
        .route(OAUTH_CALLBACK_PATH, get(oauth::callback))
        .layer(limited)
        .with_state(installer)
}

/// Limits and measures the requests of browsers.
async fn limit(State(installer): State<Arc<Installer>>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let method = request.method().clone();
    let answer = |message: Message| message.respond(&installer.slack.origin());
    let response = match installer.in_flight.try_acquire() {
        Ok(_permit) => {
            let answered = within(REQUEST_TIMEOUT, next.run(request)).await;
            answered.unwrap_or_else(answer)
        }
        Err(_) => {
            installer.metrics.record_rejection(Rejection::Overloaded);
            let text = "Please try again in a minute.";
            let status = StatusCode::SERVICE_UNAVAILABLE;
            answer(Message::new(status, "Too many requests", text))
        }
    };
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str);
    let status = response.status().as_u16();
    installer.metrics.record_request(method.as_str(), route, status, begun.elapsed());
    response.into_response()
}

/// Returns a response, or after a time the page for a request that takes too long.
async fn within(
    time: Duration,
    response: impl Future<Output = Response>,
) -> Result<Response, Message> {
    timeout(time, response).await.map_err(|_| {
        let text = "The app may be installed. Open the install link again to find out.";
        Message::new(StatusCode::GATEWAY_TIMEOUT, "The request took too long", text)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tells_late_from_busy() {
        let late = within(Duration::from_millis(1), std::future::pending()).await;
        assert_eq!(late.map(drop).expect_err("too late").title(), "The request took too long");
        let response = within(REQUEST_TIMEOUT, async { StatusCode::OK.into_response() }).await;
        assert_eq!(response.expect("in time").status(), StatusCode::OK);
    }
}
