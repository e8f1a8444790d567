//! Slack's Socket Mode, as defined in docs.slack.dev (apis/events-api/using-socket-mode).
//!
//! An app opens a connection with an app-level token: `apps.connections.open` returns a URL with a
//! ticket that is valid once. Each payload goes to one of the app's connections. An event that is
//! not acknowledged is retried like a webhook, with the reason. Commands and interactions are not
//! retried; their acknowledgement may carry a response.

use super::{
    Slack,
    delivery::{ANSWER_TIMEOUT, RETRIES},
    webhook::Webhook,
};
use futures_util::{SinkExt, StreamExt};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{Message, protocol::Role},
};

/// Maximum number of connections of an app.
const CONNECTIONS_MAX: usize = 10;
/// Interval of Slack's pings.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// Tokens, tickets and connections of apps.
#[derive(Default)]
pub(super) struct SocketMode {
    tokens: HashMap<String, String>,
    tickets: HashMap<String, String>,
    connections: BTreeMap<u64, Connection>,
    disabled: HashSet<String>,
    waiting: HashMap<String, oneshot::Sender<Value>>,
}

struct Connection {
    app: String,
    out: mpsc::UnboundedSender<Outgoing>,
}

enum Outgoing {
    Text(Value),
    Cut,
}

/// Delivery of one webhook by Socket Mode.
#[derive(Debug, Clone, Default)]
pub struct SocketDelivery {
    /// Number of envelopes that were sent.
    pub attempts: usize,
    /// Acknowledgement. `None` if no attempt was acknowledged.
    pub ack: Option<Value>,
}

impl SocketMode {
    /// Answers `apps.connections.open` with a new ticket.
    pub(super) fn open(&mut self, token: &str, ticket: String) -> Result<String, &'static str> {
        let app = match self.tokens.get(token) {
            Some(app) => app.clone(),
            None if token.starts_with("xoxb-") => return Err("not_allowed_token_type"),
            None => return Err("invalid_auth"),
        };
        self.tickets.insert(ticket.clone(), app);
        Ok(ticket)
    }

    /// Returns the connections of an app.
    fn of(&self, app: &str) -> Vec<u64> {
        let own = self.connections.iter().filter(|(_, connection)| connection.app == app);
        own.map(|(id, _)| *id).collect()
    }
}

impl Slack {
    /// Gives an app an app-level token with `connections:write`.
    pub fn register_app_token(&self, token: &str, app: &str) {
        self.state().sockets.tokens.insert(token.to_owned(), app.to_owned());
    }

    /// Disables Socket Mode, as a person does. The app's connections end, and new ones are
    /// rejected.
    pub fn disable_sockets(&self, app: &str) {
        self.state().sockets.disabled.insert(app.to_owned());
        self.disconnect_sockets(app, "link_disabled");
    }

    /// Sends `disconnect` to all connections of an app, with a reason: `warning`,
    /// `refresh_requested`, …
    pub fn disconnect_sockets(&self, app: &str, reason: &str) {
        let frame = json!({
            "type": "disconnect", "reason": reason, "debug_info": { "host": "fake" },
        });
        let state = self.state();
        for id in state.sockets.of(app) {
            let _already_closed =
                state.sockets.connections[&id].out.send(Outgoing::Text(frame.clone()));
        }
    }

    /// Cuts all connections of an app.
    pub fn cut_sockets(&self, app: &str) {
        let state = self.state();
        for id in state.sockets.of(app) {
            let _already_closed = state.sockets.connections[&id].out.send(Outgoing::Cut);
        }
    }

    /// Returns the number of open connections of an app.
    pub fn socket_count(&self, app: &str) -> usize {
        self.state().sockets.of(app).len()
    }

    /// Delivers a webhook by Socket Mode. Events are sent with all retries, other webhooks once.
    pub async fn deliver_by_socket(&self, app: &str, webhook: &Webhook) -> SocketDelivery {
        if let Some(view) = webhook.view() {
            self.state().views.known(&view);
        }
        let (kind, payload) = payload(webhook);
        let mut delivery = SocketDelivery::default();
        let mut waits = RETRIES.into_iter();
        loop {
            let id = format!("envelope-{}", self.unique());
            let mut envelope = json!({
                "type": kind, "envelope_id": id, "payload": payload,
                "accepts_response_payload": kind != "events_api",
            });
            if delivery.attempts > 0 {
                envelope["retry_attempt"] = delivery.attempts.into();
                envelope["retry_reason"] = "timeout".into();
            }
            delivery.attempts += 1;
            delivery.ack = self.send_envelope(app, &id, envelope).await;
            if delivery.ack.is_some() || kind != "events_api" {
                return delivery;
            }
            let Some(wait) = waits.next() else { return delivery };
            self.clock().reaches(self.clock().now() + wait).await;
        }
    }

    /// Sends an envelope to one of the app's connections. Returns its acknowledgement.
    async fn send_envelope(&self, app: &str, id: &str, envelope: Value) -> Option<Value> {
        let chosen = self.unique() as usize;
        let (acked, ack) = oneshot::channel();
        {
            let mut state = self.state();
            let all = state.sockets.of(app);
            let connection = all.get(chosen % all.len().max(1))?;
            let connection = &state.sockets.connections[connection];
            connection.out.send(Outgoing::Text(envelope)).ok()?;
            state.sockets.waiting.insert(id.to_owned(), acked);
        }
        let acked = tokio::time::timeout(ANSWER_TIMEOUT, ack).await;
        self.state().sockets.waiting.remove(id);
        acked.ok()?.ok()
    }

    /// Removes a ticket and returns its app.
    pub(super) fn take_ticket(&self, query: &str) -> Option<String> {
        let fields = form_urlencoded::parse(query.as_bytes());
        let ticket = fields.into_iter().find(|(name, _)| name == "ticket")?.1.into_owned();
        self.state().sockets.tickets.remove(&ticket)
    }

    /// Serves a Socket Mode connection until it ends.
    pub(super) async fn serve_socket(&self, app: String, upgrade: OnUpgrade) {
        let Ok(upgraded) = upgrade.await else { return };
        let io = TokioIo::new(upgraded);
        let socket = WebSocketStream::from_raw_socket(io, Role::Server, None).await;
        let (mut write, mut read) = socket.split();
        let (out, mut outgoing) = mpsc::unbounded_channel();
        let id = self.unique();
        let refusal = {
            let mut state = self.state();
            let sockets = &mut state.sockets;
            let refusal = match sockets.of(&app).len() {
                _ if sockets.disabled.contains(&app) => Some("link_disabled"),
                CONNECTIONS_MAX.. => Some("too_many_websockets"),
                _ => None,
            };
            if refusal.is_none() {
                sockets.connections.insert(id, Connection { app: app.clone(), out: out.clone() });
            }
            let hello = json!({
                "type": "hello", "num_connections": sockets.of(&app).len(),
                "debug_info": {
                    "host": "fake", "build_number": 1, "approximate_connection_time": 18060,
                },
                "connection_info": { "app_id": app },
            });
            let first = match refusal {
                None => hello,
                Some(reason) => json!({ "type": "disconnect", "reason": reason }),
            };
            let _is_open = out.send(Outgoing::Text(first));
            refusal
        };
        if refusal.is_some() {
            let _is_open = out.send(Outgoing::Cut);
        }
        let mut pings = tokio::time::interval(PING_INTERVAL);
        loop {
            let sent = tokio::select! {
                _ = pings.tick() => write.send(Message::Ping("ping".into())).await,
                next = outgoing.recv() => match next {
                    Some(Outgoing::Text(frame)) => {
                        let ends = frame["type"] == "disconnect" && frame["reason"] != "warning"
                            && frame["reason"] != "refresh_requested";
                        let sent = write.send(Message::text(frame.to_string())).await;
                        if ends { break }
                        sent
                    }
                    _ => break,
                },
                next = read.next() => match next {
                    Some(Ok(Message::Text(text))) => {
                        self.acknowledge(&text);
                        Ok(())
                    }
                    Some(Ok(Message::Close(_)) | Err(_)) | None => break,
                    Some(Ok(_)) => Ok(()),
                },
            };
            if sent.is_err() {
                break;
            }
        }
        self.state().sockets.connections.remove(&id);
        let _already_closed = write.close().await;
    }

    fn acknowledge(&self, text: &str) {
        let Ok(ack) = serde_json::from_str::<Value>(text) else { return };
        let id = ack["envelope_id"].as_str().unwrap_or_default();
        if let Some(waiting) = self.state().sockets.waiting.remove(id) {
            let _too_late = waiting.send(ack);
        }
    }
}

/// Returns the type and the payload of the envelope of a webhook.
fn payload(webhook: &Webhook) -> (&'static str, Value) {
    if webhook.content_type == "application/json" {
        return ("events_api", serde_json::from_slice(&webhook.body).unwrap_or_default());
    }
    let mut fields = serde_json::Map::new();
    for (name, value) in form_urlencoded::parse(&webhook.body) {
        if name == "payload" {
            return ("interactive", serde_json::from_str(&value).unwrap_or_default());
        }
        fields.insert(name.into_owned(), value.into_owned().into());
    }
    ("slash_commands", fields.into())
}
