//! Relay of webhooks from a real workspace by Socket Mode
//! (docs.slack.dev/apis/events-api/using-socket-mode).
//!
//! An envelope is acknowledged after ingest has accepted it, so every acknowledged webhook is
//! stored. Events are forwarded one at a time, in Slack's order; commands and interactions, which
//! wait for a response from a worker, concurrently. A new connection is opened before Slack ends
//! the old one.

mod envelope;
mod forwarder;

use crate::{
    output,
    slack_api::{SlackApi, SocketAddress},
};
use anyhow::{Context, bail};
use envelope::{Ending, Envelope, Frame, Kind};
use forwarder::Forwarder;
use futures_util::{SinkExt, StreamExt};
use reqwest::{Client, Url};
use shared::{secrets::Secret, store::Store};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::{interval, timeout},
};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, tungstenite::Message};

type Socket = WebSocketStream<MaybeTlsStream<tokio::net::TcpStream>>;

/// Maximum number of events that wait for ingest. At the maximum no frames are read.
const EVENTS_MAX: usize = 64;
/// Maximum number of commands and interactions that wait for their responses.
const INTERACTIONS_MAX: usize = 32;
/// Maximum number of acknowledgements that wait to be sent on a connection.
const ACKS_MAX: usize = EVENTS_MAX + INTERACTIONS_MAX;
/// Maximum time to connect, with TLS and WebSocket handshakes.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of pings.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Time without a frame after which a connection counts as lost: two and a half ping intervals.
const SILENCE_MAX: Duration = Duration::from_secs(75);
/// Waits before the next attempt to connect, by number of failures.
const BACKOFF: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
];
/// Time for which a connection that is being replaced may still receive and acknowledge webhooks.
const REPLACED_MAX: Duration = Duration::from_secs(30);

/// Relay of webhooks from Slack to ingest.
pub struct Relay {
    forwarder: Arc<Forwarder>,
    api: SlackApi,
    token: Secret,
}

/// State change of a connection.
#[derive(Debug, PartialEq, Eq)]
enum StateChange {
    /// The connection is established.
    Open,
    /// The connection must be replaced. It may still receive webhooks.
    Replace,
    /// The connection has ended, for this reason.
    Lost(String),
    /// Socket Mode is disabled.
    Disabled,
    /// The app has the maximum number of connections.
    TooMany,
}

/// Event, and the channel for its acknowledgement.
type WaitingEvent = (Envelope, mpsc::Sender<String>);

impl Relay {
    /// Returns a relay to the ingest at a base URL. `token` is the app-level token.
    pub fn new(store: Store, http: Client, ingest: Url, api: SlackApi, token: Secret) -> Self {
        Self { forwarder: Arc::new(Forwarder::new(store, http, ingest)), api, token }
    }

    /// Relays webhooks until Slack rejects the token or Socket Mode is disabled.
    pub async fn run(self) -> anyhow::Result<()> {
        let (events, waiting) = mpsc::channel(EVENTS_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(forward_events(Arc::clone(&self.forwarder), waiting));
        let mut failures = 0;
        loop {
            let address = self.api.open_socket(&self.token).await?;
            let address = match address {
                SocketAddress::Url(url) => url,
                SocketAddress::Rejected(code) => bail!("{}", rejection_message(&code)),
                SocketAddress::Failed(why) => {
                    print_status(&format!("failed to open a connection: {why}"));
                    back_off(&mut failures).await;
                    continue;
                }
            };
            let (changes, mut state) = mpsc::channel(8);
            match timeout(CONNECT_TIMEOUT, connect(&address)).await {
                Ok(Ok(socket)) => {
                    let forwarder = Arc::clone(&self.forwarder);
                    tasks.spawn(serve(socket, forwarder, events.clone(), changes));
                }
                Ok(Err(error)) => {
                    print_status(&format!("failed to connect: {error:#}"));
                    back_off(&mut failures).await;
                    continue;
                }
                Err(_) => {
                    print_status(&format!("failed to connect within {CONNECT_TIMEOUT:?}"));
                    back_off(&mut failures).await;
                    continue;
                }
            }
            while tasks.try_join_next().is_some() {}
            loop {
                match state.recv().await {
                    Some(StateChange::Open) => failures = 0,
                    Some(StateChange::Replace) => break,
                    Some(StateChange::Disabled) => bail!(
                        "Slack ended the connection: Socket Mode is disabled; \
                         enable it in the settings of the app, under Socket Mode"
                    ),
                    Some(StateChange::TooMany) => {
                        print_status(
                            "the app has the maximum number of connections; end the others",
                        );
                        back_off(&mut failures).await;
                        break;
                    }
                    Some(StateChange::Lost(why)) => {
                        print_status(&format!("connection lost ({why}); reconnecting"));
                        back_off(&mut failures).await;
                        break;
                    }
                    None => break,
                }
            }
        }
    }
}

/// Waits before the next attempt, longer after each failure.
async fn back_off(failures: &mut usize) {
    tokio::time::sleep(BACKOFF[(*failures).min(BACKOFF.len() - 1)]).await;
    *failures += 1;
}

fn rejection_message(code: &str) -> String {
    let remedy = match code {
        "missing_scope" | "not_allowed_token_type" => {
            "create an app-level token with the scope connections:write under Basic Information"
        }
        _ => {
            "check the app-level token, and that Socket Mode is enabled in the settings of the app"
        }
    };
    format!("Slack rejected apps.connections.open: {}; {remedy}", output::sanitize(code))
}

/// Prints a status line of the relay.
fn print_status(text: &str) {
    let _stdout_closed = output::print_line(&format!("slack        {text}"));
}

async fn connect(url: &Secret) -> anyhow::Result<Socket> {
    let connected = tokio_tungstenite::connect_async(url.expose()).await;
    // The URL contains a ticket, which errors of the handshake do not quote.
    Ok(connected.context("WebSocket handshake failed")?.0)
}

/// Forwards events one at a time, in order.
async fn forward_events(forwarder: Arc<Forwarder>, mut waiting: mpsc::Receiver<WaitingEvent>) {
    while let Some((event, acks)) = waiting.recv().await {
        if let Some(ack) = forwarder.forward(&event).await {
            let _connection_closed = acks.send(ack).await;
        }
    }
}

/// Serves a connection until it ends. Sends its state changes to `changes`.
async fn serve(
    mut socket: Socket,
    forwarder: Arc<Forwarder>,
    events: mpsc::Sender<WaitingEvent>,
    changes: mpsc::Sender<StateChange>,
) {
    let (acks, mut waiting_acks) = mpsc::channel::<String>(ACKS_MAX);
    let slots = Arc::new(Semaphore::new(INTERACTIONS_MAX));
    let (mut running, mut pings) = (JoinSet::new(), interval(PING_INTERVAL));
    let mut replaced_at = None;
    let end = loop {
        while running.try_join_next().is_some() {}
        let replaced = async {
            match replaced_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let frame = tokio::select! {
            _ = pings.tick() => {
                let _timeout_follows = socket.send(Message::Ping("tidegate".into())).await;
                continue;
            }
            Some(ack) = waiting_acks.recv() => {
                match socket.send(Message::text(ack)).await {
                    Ok(()) => continue,
                    Err(error) => break error.to_string(),
                }
            }
            () = replaced => break "replaced".to_owned(),
            read = timeout(SILENCE_MAX, socket.next()) => match read {
                Err(_) => break format!("no frame within {SILENCE_MAX:?}"),
                Ok(None | Some(Ok(Message::Close(_)))) => break "closed by Slack".to_owned(),
                Ok(Some(Err(error))) => break error.to_string(),
                Ok(Some(Ok(Message::Text(text)))) => envelope::parse(&text),
                Ok(Some(Ok(_))) => continue,
            },
        };
        match frame {
            Err(_) => print_status("ignored a frame that is not JSON"),
            Ok(Frame::Unknown(kind)) => {
                print_status(&format!("ignored a frame of type {}", output::sanitize(&kind)));
            }
            Ok(Frame::Hello { connections, app }) => {
                if let Some(app) = &app {
                    forwarder.set_app(app);
                }
                report_hello(connections, app.as_deref(), &changes).await;
            }
            Ok(Frame::Disconnect(ending)) => {
                let change = match ending {
                    Ending::Refresh => StateChange::Replace,
                    Ending::LinkDisabled => StateChange::Disabled,
                    Ending::TooMany => StateChange::TooMany,
                };
                replaced_at = Some(tokio::time::Instant::now() + REPLACED_MAX);
                let _connection_replaced = changes.try_send(change);
            }
            Ok(Frame::Envelope(envelope)) if envelope.kind == Kind::Event => {
                let _command_ended = events.send((envelope, acks.clone())).await;
            }
            Ok(Frame::Envelope(envelope)) => match Arc::clone(&slots).try_acquire_owned() {
                Err(_) => print_status(&format!(
                    "dropped an interaction: {INTERACTIONS_MAX} others are waiting"
                )),
                Ok(slot) => {
                    let (forwarder, acks) = (Arc::clone(&forwarder), acks.clone());
                    running.spawn(async move {
                        if let Some(ack) = forwarder.forward(&envelope).await {
                            let _connection_closed = acks.send(ack).await;
                        }
                        drop(slot);
                    });
                }
            },
        }
    };
    let _connection_replaced = changes.try_send(StateChange::Lost(end));
}

/// Reports that a connection is established. Warns if the app has several connections, because
/// Slack sends each webhook to only one of them.
async fn report_hello(connections: u64, app: Option<&str>, changes: &mpsc::Sender<StateChange>) {
    let app = app.map_or_else(String::new, |app| format!(" as app {}", output::sanitize(app)));
    print_status(&format!("connected{app}"));
    if connections > 1 {
        print_status(&format!(
            "warning: the app has {connections} connections, and Slack sends each webhook to one \
             of them; end the others"
        ));
    }
    let _connection_replaced = changes.try_send(StateChange::Open);
}
