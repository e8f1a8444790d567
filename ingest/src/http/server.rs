//! Sockets: accepted, bounded, ended.
//!
//! In: a listener and a router. Out: HTTP/1.1, with patience that ends (see `patience`), a cap on connections, and an end
//! that answers what has begun. Not `axum::serve`: it sets no timer, and slow or silent sockets stay for ever.

use crate::http::idle_timeout::{Patient, Turns};
use axum::Router;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{rt::TokioIo, server::graceful::GracefulShutdown};
use std::{sync::Arc, time::Duration};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;
use tracing::warn;

/// What has begun gets this long when we stop serving: more than any webhook takes.
pub const FINISH_DEADLINE: Duration = Duration::from_secs(6);

/// Serves until told to stop, then finishes what has begun.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    connections_max: usize,
    stop: CancellationToken,
) {
    let permits = Arc::new(Semaphore::new(connections_max));
    let graceful = GracefulShutdown::new();
    loop {
        let next = async {
            let permit = Arc::clone(&permits).acquire_owned().await;
            (permit, listener.accept().await)
        };
        let (permit, accepted) = tokio::select! {
            _ = stop.cancelled() => break,
            next = next => next,
        };
        let (Ok(permit), Ok((socket, _))) = (permit, accepted) else {
            // Out of file descriptors, most likely: whoever is connected goes on, the next may wait.
            warn!("a connection could not be accepted");
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        let _ = socket.set_nodelay(true); // without it answers are only later, not wrong
        serve_one(socket, router.clone(), permit, &graceful);
    }
    drop(listener);
    if tokio::time::timeout(FINISH_DEADLINE - Duration::from_millis(500), graceful.shutdown())
        .await
        .is_err()
    {
        warn!("connections were still open at the end");
    }
}

fn serve_one(
    socket: TcpStream,
    router: Router,
    permit: OwnedSemaphorePermit,
    graceful: &GracefulShutdown,
) {
    let turns = Turns::default();
    let socket = Patient::new(socket, turns.clone());
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let (turns, router) = (turns.clone(), router.clone());
        turns.next();
        async move {
            let answer = router.oneshot(request.map(axum::body::Body::new)).await;
            turns.next();
            answer
        }
    });
    let connection = http1::Builder::new().serve_connection(TokioIo::new(socket), service);
    let watched = graceful.watch(connection);
    tokio::spawn(async move {
        let _ = watched.await; // a peer that goes away is no news
        drop(permit);
    });
}
