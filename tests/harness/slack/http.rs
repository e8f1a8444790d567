//! HTTP server of the simulated Slack, on hyper instead of a framework: some faults close the
//! connection without an answer.
//!
//! Requests are answered by [`super::api`], [`super::oauth`] and [`super::socket_mode`].

use super::{Slack, api, oauth};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    Request, Response,
    body::{Frame, Incoming},
    header::{
        AUTHORIZATION, CONNECTION, CONTENT_TYPE, RETRY_AFTER, SEC_WEBSOCKET_ACCEPT,
        SEC_WEBSOCKET_KEY, UPGRADE,
    },
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use serde_json::{Map, Value, json};
use std::{convert::Infallible, io, time::Duration};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// An answer.
pub(super) enum Reply {
    /// A complete answer.
    Answer { status: u16, kind: &'static str, headers: Vec<(&'static str, String)>, body: String },
    /// Closes the connection without an answer.
    Cut,
    /// Closes the connection in the middle of the answer.
    MidBody,
}

impl Reply {
    pub(super) fn ok(headers: Vec<(&'static str, String)>, body: Value) -> Self {
        let kind = "application/json; charset=utf-8";
        Self::Answer { status: 200, kind, headers, body: body.to_string() }
    }

    pub(super) fn text(status: u16, body: &str) -> Self {
        let kind = "text/html; charset=utf-8";
        Self::Answer { status, kind, headers: Vec::new(), body: body.to_owned() }
    }

    pub(super) fn redirect(location: String) -> Self {
        let headers = vec![("location", location)];
        let kind = "text/html; charset=utf-8";
        Self::Answer { status: 302, kind, headers, body: String::new() }
    }

    pub(super) fn rate_limited(seconds: u64) -> Self {
        let headers = vec![(RETRY_AFTER.as_str(), seconds.to_string())];
        let body = json!({ "ok": false, "error": "ratelimited" }).to_string();
        Self::Answer { status: 429, kind: "application/json; charset=utf-8", headers, body }
    }
}

/// Serves until the runtime ends.
pub(super) async fn serve(listener: TcpListener, slack: Slack) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => drop(tokio::spawn(connection(stream, slack.clone()))),
            Err(error) => {
                eprintln!("failed to accept a connection to the simulated Slack: {error}")
            }
        }
    }
}

async fn connection(stream: TcpStream, slack: Slack) {
    let service = service_fn(move |request| {
        let slack = slack.clone();
        async move { answer(&slack, request).await }
    });
    let _closed_or_cut =
        http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades().await;
}

async fn answer(
    slack: &Slack,
    mut request: Request<Incoming>,
) -> anyhow::Result<Response<BoxBody<Bytes, io::Error>>> {
    if request.uri().path() == "/link/" {
        return upgrade(slack, &mut request);
    }
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let header = |name| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let path = parts.uri.path();
    let reply = if let Some(method) = path.strip_prefix("/api/") {
        let mut args = arguments(header(CONTENT_TYPE), &body, parts.uri.query());
        let mut token = header(AUTHORIZATION).strip_prefix("Bearer ").map(str::to_owned);
        if let Some((client, secret)) = basic(header(AUTHORIZATION)) {
            args["client_id"] = client.into();
            args["client_secret"] = secret.into();
        }
        if token.is_none() {
            token = args["token"].as_str().map(str::to_owned);
        }
        api::call(slack, method, token, args).await
    } else if path.starts_with("/oauth/v2/") {
        oauth::page(slack, path, parts.uri.query().unwrap_or_default(), &body)
    } else if path.starts_with("/commands/") {
        match serde_json::from_slice(&body) {
            Ok(body) => api::respond(slack, path, body).await,
            Err(_) => Reply::text(400, "invalid_payload"),
        }
    } else {
        Reply::text(404, "not_found")
    };
    match reply {
        Reply::Cut => anyhow::bail!("connection cut by an injected fault"),
        Reply::MidBody => {
            // The first half is sent before the connection is closed.
            let body = futures_util::stream::unfold(0, |step| async move {
                match step {
                    0 => Some((Ok(Frame::data(Bytes::from_static(b"{\"ok\":tr"))), 1)),
                    1 => {
                        tokio::time::sleep(Duration::from_millis(30)).await;
                        Some((Err(io::ErrorKind::ConnectionReset.into()), 2))
                    }
                    _ => None,
                }
            });
            let response = Response::builder().header("content-length", "4096");
            Ok(response.body(StreamBody::new(body).boxed())?)
        }
        Reply::Answer { status, kind, headers, body } => {
            let mut response = Response::builder().status(status).header(CONTENT_TYPE, kind);
            for (name, value) in headers {
                response = response.header(name, value);
            }
            let never = |never: Infallible| match never {};
            Ok(response.body(Full::from(body).map_err(never).boxed())?)
        }
    }
}

/// Answers the WebSocket handshake of a Socket Mode connection.
fn upgrade(
    slack: &Slack,
    request: &mut Request<Incoming>,
) -> anyhow::Result<Response<BoxBody<Bytes, io::Error>>> {
    let empty = || Full::<Bytes>::default().map_err(|never: Infallible| match never {}).boxed();
    let app = slack.take_ticket(request.uri().query().unwrap_or_default());
    let (Some(app), Some(key)) = (app, request.headers().get(SEC_WEBSOCKET_KEY)) else {
        return Ok(Response::builder().status(404).body(empty())?);
    };
    let accept = derive_accept_key(key.as_bytes());
    let (slack, upgrade) = (slack.clone(), hyper::upgrade::on(request));
    tokio::spawn(async move { slack.serve_socket(app, upgrade).await });
    let response = Response::builder()
        .status(101)
        .header(UPGRADE, "websocket")
        .header(CONNECTION, "Upgrade")
        .header(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response.body(empty())?)
}

/// Returns the arguments from the body and the query. Structured values in a form are JSON strings.
fn arguments(content_type: &str, body: &[u8], query: Option<&str>) -> Value {
    let mut args = match serde_json::from_slice(body) {
        Ok(Value::Object(args)) if content_type.starts_with("application/json") => args,
        _ => Map::new(),
    };
    let form = content_type.starts_with("application/x-www-form-urlencoded");
    let body = if form { body } else { b"" };
    for source in [query.unwrap_or_default().as_bytes(), body] {
        for (name, value) in form_urlencoded::parse(source) {
            let value = match value.starts_with(['{', '[']) {
                true => serde_json::from_str(&value).unwrap_or_else(|_| value.as_ref().into()),
                false => value.as_ref().into(),
            };
            args.insert(name.into_owned(), value);
        }
    }
    Value::Object(args)
}

/// Returns the client id and secret of a Basic `Authorization` header.
fn basic(authorization: &str) -> Option<(String, String)> {
    let decoded = BASE64.decode(authorization.strip_prefix("Basic ")?).ok()?;
    let (client, secret) = str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some((client.to_owned(), secret.to_owned()))
}
