//! Idempotency keys: a repeated write with the same `Idempotency-Key` gets the response of the
//! first one, for 24 hours.

use super::{Api, Problem, declarations};
use axum::{
    body::{Body, to_bytes},
    extract::{Request, State},
    http::{HeaderValue, Method, StatusCode, header, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use sha2::{Digest, Sha256};
use shared::{
    domain::ApiKeyRole,
    runtime::telemetry::ErrorChain,
    store::{ApiCaller, ClaimResult, IdempotencyClaim},
};
use std::sync::Arc;
use tracing::warn;

/// Name of the header.
const HEADER: &str = "idempotency-key";
/// Maximum length of a key in bytes.
const KEY_BYTES_MAX: usize = 128;
/// Maximum size of a request's body in bytes, except of declarations.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// Maximum size of a recorded response in bytes. Responses to writes are smaller.
const MAX_RESPONSE_BYTES: usize = 1024 * 1024;

/// Limits the body of a request, and answers repeated writes with the recorded response.
pub async fn answer_repeated(
    State(api): State<Arc<Api>>,
    request: Request,
    next: Next,
) -> Response {
    run(&api, request, next).await.unwrap_or_else(IntoResponse::into_response)
}

async fn run(api: &Api, request: Request, next: Next) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let max = max_body_bytes(&parts);
    let body = to_bytes(body, max)
        .await
        .map_err(|_| Problem::too_large(format!("the body must have {} KiB at most", max >> 10)))?;
    let again = |body: axum::body::Bytes| Request::from_parts(parts.clone(), Body::from(body));
    let key = match parts.headers.get(HEADER) {
        Some(key) if parts.method != Method::GET => checked(key)?,
        _ => return Ok(next.run(again(body)).await),
    };
    let Some(caller) = parts.extensions.get::<ApiCaller>().cloned() else {
        return Err(Problem::unauthorized("no API key"));
    };
    let target = parts.uri.path_and_query().map_or("", |target| target.as_str());
    let hash = Sha256::new()
        .chain_update(parts.method.as_str())
        .chain_update([0])
        .chain_update(target)
        .chain_update([0])
        .chain_update(&body)
        .finalize();
    let claim = IdempotencyClaim { api_key: &caller.key, key, request_hash: hash.as_slice() };
    match api.store.claim_idempotency_key(claim).await? {
        ClaimResult::Claimed => {}
        ClaimResult::Recorded { status, body } => return Ok(recorded(status, body)),
        ClaimResult::InProgress => {
            let why = "a request with this Idempotency-Key is in progress";
            return Err(Problem::conflict(why).retry_after(1));
        }
        ClaimResult::OtherRequest => {
            let why = "this Idempotency-Key was used for another request";
            return Err(Problem::invalid(why));
        }
    }
    let response = next.run(again(body)).await;
    let (parts, body) = response.into_parts();
    let status = parts.status;
    let body = to_bytes(body, MAX_RESPONSE_BYTES).await.unwrap_or_default();
    // After a server error, a repeated request must run again.
    let ended = if status.is_server_error() {
        api.store.release_idempotency_key(claim).await
    } else {
        api.store.record_idempotent_response(claim, status.as_u16(), &body).await
    };
    if let Err(error) = ended {
        warn!(error = %ErrorChain(&error), "failed to record response for idempotency key");
    }
    Ok(Response::from_parts(parts, Body::from(body)))
}

/// Returns the maximum size of a body. Only callers who may apply declarations may send more.
fn max_body_bytes(parts: &Parts) -> usize {
    let caller = parts.extensions.get::<ApiCaller>();
    let declares = caller.is_some_and(|it| it.org.is_none() && it.role >= ApiKeyRole::Owner);
    match declares && parts.uri.path() == declarations::PATH {
        true => declarations::MAX_BODY_BYTES,
        false => MAX_BODY_BYTES,
    }
}

fn checked(key: &HeaderValue) -> Result<&str, Problem> {
    let text = key.to_str().ok().filter(|text| (1..=KEY_BYTES_MAX).contains(&text.len()));
    text.filter(|text| text.bytes().all(|b| b.is_ascii_graphic())).ok_or_else(|| {
        Problem::bad_request("Idempotency-Key must have 1 to 128 visible ASCII characters")
    })
}

fn recorded(status: u16, body: Vec<u8>) -> Response {
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::OK);
    let kind = match status.is_success() {
        true => "application/json",
        false => "application/problem+json",
    };
    let replayed = [(header::CONTENT_TYPE.as_str(), kind), ("idempotency-replayed", "true")];
    (status, replayed, body).into_response()
}
