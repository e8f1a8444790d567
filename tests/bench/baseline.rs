//! Baselines: the least code that can replace ingest.
//!
//! (a) checks the HMAC and answers. (b) also publishes the body under a dedup key and waits until
//! JetStream confirms it. (b′) stores the same as ingest, with ingest's subjects, headers and user,
//! so that the difference between (b′) and ingest is ingest's own work. Each is a separate process,
//! as ingest is, without directory, age check, limits, deadlines, classification, log, metrics and
//! drain.

use crate::{
    client::number,
    tenants::{Tenants, event_id},
};
use anyhow::Context;
use async_nats::{ConnectOptions, HeaderMap, jetstream};
use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{self, StatusCode},
    routing::post,
};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use shared::{
    domain::HeaderToken,
    stream::{DedupKey, Envelope},
};
use std::{net::SocketAddr, path::PathBuf, sync::Arc};

/// Number of connections, equal to that of the client.
pub const TENANTS: usize = 10;
/// Number of prepared envelopes, enough for all subjects.
const ENVELOPES: u64 = 8_192;

/// Kind of baseline.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Role {
    /// (a)
    #[command(hide = true)]
    Bare(Settings),
    /// (b)
    #[command(hide = true)]
    Publish(Settings),
    /// (b′)
    #[command(hide = true)]
    Enveloped(Settings),
}

/// Settings of a baseline.
#[derive(Debug, Clone, clap::Args)]
pub struct Settings {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    secret: String,
    #[arg(long, value_delimiter = ',')]
    nats: Vec<async_nats::ServerAddr>,
    #[arg(long)]
    nkey_file: PathBuf,
}

struct Least {
    key: Hmac<Sha256>,
    js: Option<jetstream::Context>,
    /// Stored messages without dedup key and body; empty for (b).
    envelopes: Vec<Envelope>,
}

/// Serves until killed.
pub async fn serve(role: Role) -> anyhow::Result<()> {
    let (settings, inbox, envelopes) = match role {
        Role::Bare(settings) => (settings, None, Vec::new()),
        Role::Publish(settings) => (settings, Some("_INBOX"), Vec::new()),
        Role::Enveloped(settings) => {
            let tenants = Tenants::random(TENANTS)?;
            let envelopes = (0..ENVELOPES).map(|n| tenants.envelope(n, 0)).collect();
            (settings, Some("_INBOX_ingest"), envelopes)
        }
    };
    let js = match inbox {
        Some(prefix) => {
            let nkey = std::fs::read_to_string(settings.nkey_file)?;
            let options = ConnectOptions::with_nkey(nkey).custom_inbox_prefix(prefix);
            Some(jetstream::new(options.connect(&settings.nats[..]).await?))
        }
        None => None,
    };
    let key = Hmac::new_from_slice(settings.secret.as_bytes())?;
    let router =
        Router::new().route("/", post(handle)).with_state(Arc::new(Least { key, js, envelopes }));
    let listener = tokio::net::TcpListener::bind(settings.listen).await?;
    axum::serve(listener, router).await.context("failed to serve HTTP")
}

async fn handle(
    State(least): State<Arc<Least>>,
    headers: http::HeaderMap,
    body: Bytes,
) -> StatusCode {
    let header = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let (Some(timestamp), Some(signature)) =
        (header("x-slack-request-timestamp"), header("x-slack-signature"))
    else {
        return StatusCode::UNAUTHORIZED;
    };
    let mut mac = least.key.clone();
    mac.update(b"v0:");
    mac.update(timestamp.as_bytes());
    mac.update(b":");
    mac.update(&body);
    if signature.strip_prefix("v0=").and_then(tag).is_none_or(|tag| mac.verify_slice(&tag).is_err())
    {
        return StatusCode::UNAUTHORIZED;
    }
    let Some(js) = &least.js else { return StatusCode::OK };
    let number = number();
    let (subject, with) = match least.envelopes.get((number % ENVELOPES) as usize) {
        None => {
            let mut with = HeaderMap::new();
            with.insert("Nats-Msg-Id", signature);
            ("slack.in.0.baseline".to_owned(), with)
        }
        Some(envelope) => {
            let dedup_key = DedupKey::event(envelope.connection, &event_id(number));
            let (Some(signature), Some(timestamp)) =
                (HeaderToken::new(signature), HeaderToken::new(timestamp))
            else {
                return StatusCode::UNAUTHORIZED;
            };
            let envelope = Envelope { dedup_key, signature, timestamp, ..envelope.clone() };
            (envelope.subject(), envelope.headers())
        }
    };
    let published = async { js.publish_with_headers(subject, with, body).await?.await };
    match published.await {
        Ok(_) => StatusCode::OK,
        Err(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn tag(hex: &str) -> Option<[u8; 32]> {
    let mut tag = [0; 32];
    if hex.len() != 64 {
        return None;
    }
    for (byte, pair) in tag.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        let digit = |b: u8| char::from(b).to_digit(16);
        *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
    }
    Some(tag)
}
