//! HTTP/1.1 server with timeouts, limits on connections and heads, and a graceful shutdown.
//!
//! Not `axum::serve`: it sets no timeouts, so idle and slow sockets would stay open forever.

use axum::Router;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{rt::TokioIo, server::graceful::GracefulShutdown};
use shared::runtime::{IdleTimeoutStream, RequestPhase};
use std::{io, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::warn;

/// Maximum size of a request's head, in bytes. Each buffer of an HTTP connection grows to at most
/// twice this size: while that many response bytes are unsent, no further request is answered.
pub const HEAD_BYTES_MAX: usize = 32 * 1024;
/// Maximum number of headers of a request. A proxy and Slack together send about 20.
const MAX_HEADERS: usize = 64;
/// Maximum time from the stop of a server to its end. Longer than the processing of any webhook.
pub const FINISH_TIMEOUT: Duration = Duration::from_secs(6);
/// Part of [`FINISH_TIMEOUT`] that is left for the rest of the shutdown.
const FINISH_MARGIN: Duration = Duration::from_millis(500);
/// Wait after a failed accept. The usual cause is a lack of file descriptors.
const ACCEPT_RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Serves until `stop` is cancelled, then finishes the requests in progress.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    max_connections: usize,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(max_connections));
    let graceful = GracefulShutdown::new();
    let accept = async || {
        let permit = Arc::clone(&permits).acquire_owned().await.map_err(io::Error::other)?;
        listener.accept().await.map(|accepted| (permit, accepted))
    };
    while let Some(accepted) = stop.run_until_cancelled(accept()).await {
        let (permit, (socket, _)) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "failed to accept HTTP connection");
                sleep(ACCEPT_RETRY_INTERVAL).await;
                continue;
            }
        };
        let _ = socket.set_nodelay(true); // a failure only delays responses
        serve_connection(socket, router.clone(), permit, &graceful);
    }
    drop(listener);
    if timeout(FINISH_TIMEOUT - FINISH_MARGIN, graceful.shutdown()).await.is_err() {
        warn!("open HTTP connections aborted");
    }
}

fn serve_connection(
    socket: TcpStream,
    router: Router,
    permit: OwnedSemaphorePermit,
    graceful: &GracefulShutdown,
) {
    let phase = RequestPhase::default();
    let socket = IdleTimeoutStream::new(socket, phase.clone());
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (phase, router) = (phase.clone(), router.clone());
        phase.advance();
        async move {
            let response = router.oneshot(request.map(axum::body::Body::new)).await;
            phase.advance();
            response
        }
    });
    let connection = http1::Builder::new()
        .max_buf_size(HEAD_BYTES_MAX)
        .max_header_size(HEAD_BYTES_MAX) // a buffer may be larger than its maximum
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(socket), service);
    let watched = graceful.watch(connection);
    #[expect(clippy::disallowed_methods, reason = "the server waits for its connections")]
    tokio::spawn(async move {
        let _ = watched.await; // an error means that the peer has left
        drop(permit);
    });
}
