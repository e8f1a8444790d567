//! HTTP/1.1 server with timeouts, a limit on connections and a graceful shutdown.
//!
//! Not `axum::serve`: it sets no timeouts, so idle sockets and those of peers that do not read
//! would stay open forever.

use axum::{
    Router,
    extract::{ConnectInfo, Request},
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::graceful::GracefulShutdown,
};
use shared::runtime::{IdleTimeoutStream, RequestPhase};
use std::{io, net::SocketAddr, sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::warn;

/// Maximum time to receive the head of the next request on an HTTP connection.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// Maximum time from the stop of a server to its end. Longer than any request takes.
pub const FINISH_TIMEOUT: Duration = Duration::from_secs(32);
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
        let (permit, (socket, peer)) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                warn!(%error, "failed to accept HTTP connection");
                sleep(ACCEPT_RETRY_INTERVAL).await;
                continue;
            }
        };
        let _ = socket.set_nodelay(true); // a failure only delays responses
        serve_connection(socket, peer, router.clone(), permit, &graceful);
    }
    drop(listener);
    if timeout(FINISH_TIMEOUT - FINISH_MARGIN, graceful.shutdown()).await.is_err() {
        warn!("open HTTP connections aborted");
    }
}

fn serve_connection(
    socket: TcpStream,
    peer: SocketAddr,
    router: Router,
    permit: OwnedSemaphorePermit,
    graceful: &GracefulShutdown,
) {
    let service = service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request.map(axum::body::Body::new))
    });
    // hyper limits reads only. A peer that does not read its responses would stay connected.
    let socket = IdleTimeoutStream::new(socket, RequestPhase::without_read_timeout());
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(socket), service);
    let watched = graceful.watch(connection);
    #[expect(clippy::disallowed_methods, reason = "the server waits for its connections")]
    tokio::spawn(async move {
        let _ = watched.await; // an error means that the peer has left
        drop(permit);
    });
}
