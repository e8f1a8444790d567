//! Idempotency keys: a repeated write with the same `Idempotency-Key` gets the response of the
//! first one, for 24 hours.
//!
//! The first write runs to its end and is recorded, even if its caller leaves or is answered that
//! the request took too long. Until then a repeated write is answered 409.

use super::{Api, Problem, declarations};
use crate::metrics::Rejection;
use axum::{
    body::{Body, Bytes, HttpBody, to_bytes},
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
use std::{panic::resume_unwind, sync::Arc, time::Duration};
use tokio::time::timeout;
use tracing::warn;

/// Name of the header.
const HEADER: &str = "idempotency-key";
/// Maximum length of a key in bytes.
const KEY_BYTES_MAX: usize = 128;
/// Maximum size of a request's body in bytes, except of declarations.
pub const MAX_BODY_BYTES: usize = 64 * 1024;
/// Maximum size of a recorded response in bytes. Nearly all responses to writes are smaller.
const MAX_RESPONSE_BYTES: usize = 1024 * 1024;
/// Maximum time of a write. Shorter than the minute after which another request may take over the
/// claim.
const WRITE_TIMEOUT: Duration = Duration::from_secs(50);

/// Limits the body of a request, and answers repeated writes with the recorded response.
pub async fn answer_repeated(
    State(api): State<Arc<Api>>,
    request: Request,
    next: Next,
) -> Response {
    run(api, request, next).await.unwrap_or_else(IntoResponse::into_response)
}

async fn run(api: Arc<Api>, request: Request, next: Next) -> Result<Response, Problem> {
    let (parts, body) = request.into_parts();
    let max = max_body_bytes(&parts);
    let body = to_bytes(body, max)
        .await
        .map_err(|_| Problem::too_large(format!("the body must have {} KiB at most", max >> 10)))?;
    let key = match parts.headers.get(HEADER) {
        Some(key) if parts.method != Method::GET => checked(key)?.to_owned(),
        _ => return Ok(next.run(Request::from_parts(parts, Body::from(body))).await),
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
    let request = Request::from_parts(parts, Body::from(body));
    let write = async move {
        let Ok(_permit) = api.keyed_writes.try_acquire() else {
            api.metrics.record_rejection(Rejection::Overloaded);
            return Err(Problem::unavailable("too many writes are in progress").retry_after(1));
        };
        let claim =
            IdempotencyClaim { api_key: &caller.key, key: &key, request_hash: hash.as_slice() };
        run_once(&api, claim, next.run(request)).await
    };
    run_to_end(write).await?
}

/// Runs work to its end, even if the returned future is dropped.
async fn run_to_end<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, Problem> {
    #[expect(clippy::disallowed_methods, reason = "a timeout or a client must not cancel a write")]
    let task = tokio::spawn(work);
    task.await.map_err(|ended| match ended.try_into_panic() {
        Ok(panic) => resume_unwind(panic),
        Err(_) => Problem::unavailable("the process is stopping"),
    })
}

/// Claims the key, runs the write and records its response, or returns the recorded response.
async fn run_once(
    api: &Api,
    claim: IdempotencyClaim<'_>,
    write: impl Future<Output = Response>,
) -> Result<Response, Problem> {
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
    let late = |_| Problem::timeout("the request did not complete in time").into_response();
    let response = timeout(WRITE_TIMEOUT, write).await.unwrap_or_else(late);
    let is_server_error = response.status().is_server_error();
    let (response, status, body) = copy(response).await;
    // After a server error, a repeated request must run again.
    let ended = if is_server_error {
        api.store.release_idempotency_key(claim).await
    } else {
        api.store.record_idempotent_response(claim, status.as_u16(), &body).await
    };
    if let Err(error) = ended {
        warn!(error = %ErrorChain(&error), "failed to record response for idempotency key");
    }
    Ok(response)
}

/// Returns the response with the status and body to record: its own, or those of a problem if the
/// body is too large.
async fn copy(response: Response) -> (Response, StatusCode, Bytes) {
    let (parts, body) = response.into_parts();
    let size = body.size_hint().exact().and_then(|size| usize::try_from(size).ok());
    if size.is_none_or(|size| size > MAX_RESPONSE_BYTES) {
        let why = "the request with this Idempotency-Key has ended; its response is too large to \
                   be repeated";
        let problem = Problem::conflict(why);
        let recorded = serde_json::to_vec(&problem).unwrap_or_default();
        return (Response::from_parts(parts, body), problem.status(), recorded.into());
    }
    let status = parts.status;
    // The body is in memory, and within the limit.
    let body = to_bytes(body, MAX_RESPONSE_BYTES).await.unwrap_or_default();
    (Response::from_parts(parts, Body::from(body.clone())), status, body)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use tokio::time::sleep;

    fn response(bytes: usize) -> Response {
        (StatusCode::CREATED, vec![b'x'; bytes]).into_response()
    }

    /// A response that is too large reaches the caller. A repeated request gets a problem.
    #[tokio::test]
    async fn replaces_large_response() {
        let (sent, status, body) = copy(response(MAX_RESPONSE_BYTES)).await;
        assert_eq!((sent.status(), status), (StatusCode::CREATED, StatusCode::CREATED));
        assert_eq!(body.len(), MAX_RESPONSE_BYTES);
        let (sent, status, body) = copy(response(MAX_RESPONSE_BYTES + 1)).await;
        assert_eq!((sent.status(), status), (StatusCode::CREATED, StatusCode::CONFLICT));
        let sent = to_bytes(sent.into_body(), usize::MAX).await.expect("a body");
        assert_eq!(sent.len(), MAX_RESPONSE_BYTES + 1);
        assert!(String::from_utf8_lossy(&body).contains("too large to be repeated"), "{body:?}");
    }

    #[tokio::test]
    async fn runs_write_to_end_without_caller() {
        let is_done = Arc::new(AtomicBool::new(false));
        let work = {
            let is_done = Arc::clone(&is_done);
            async move {
                sleep(Duration::from_millis(50)).await;
                is_done.store(true, Ordering::Relaxed);
            }
        };
        assert!(timeout(Duration::from_millis(5), run_to_end(work)).await.is_err());
        while !is_done.load(Ordering::Relaxed) {
            sleep(Duration::from_millis(5)).await;
        }
    }
}
