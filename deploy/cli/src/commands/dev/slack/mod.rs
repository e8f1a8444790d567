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
    time::{Instant, interval, sleep, sleep_until, timeout},
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
/// Time without a frame after which a connection counts as lost, and maximum time to send one: two
/// and a half ping intervals.
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
                SocketAddress::RateLimited(wait) => {
                    print_status(&format!("Slack limits the rate of calls; waiting {wait:?}"));
                    sleep(wait).await;
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
    sleep(BACKOFF[(*failures).min(BACKOFF.len() - 1)]).await;
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
    let (mut replaced_at, mut silent_at) = (None, Instant::now() + SILENCE_MAX);
    let end = loop {
        while running.try_join_next().is_some() {}
        let replaced = async {
            match replaced_at {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let frame = tokio::select! {
            _ = pings.tick() => match send(&mut socket, Message::Ping("tidegate".into())).await {
                Ok(()) => continue,
                Err(why) => break why,
            },
            Some(ack) = waiting_acks.recv() => match send(&mut socket, Message::text(ack)).await {
                Ok(()) => continue,
                Err(why) => break why,
            },
            () = replaced => break "replaced".to_owned(),
            () = sleep_until(silent_at) => break format!("no frame within {SILENCE_MAX:?}"),
            read = socket.next() => match read {
                None | Some(Ok(Message::Close(_))) => break "closed by Slack".to_owned(),
                Some(Err(error)) => break error.to_string(),
                Some(Ok(Message::Text(text))) => Some(envelope::parse(&text)),
                Some(Ok(_)) => None,
            },
        };
        match frame {
            None => {}
            Some(Err(_)) => print_status("ignored a frame that is not JSON"),
            Some(Ok(Frame::Unknown(kind))) => {
                print_status(&format!("ignored a frame of type {}", output::sanitize(&kind)));
            }
            Some(Ok(Frame::Hello { connections, app })) => {
                if let Some(app) = &app {
                    forwarder.set_app(app);
                }
                report_hello(connections, app.as_deref(), &changes).await;
            }
            Some(Ok(Frame::Disconnect(ending))) => {
                let change = match ending {
                    Ending::Refresh => StateChange::Replace,
                    Ending::LinkDisabled => StateChange::Disabled,
                    Ending::TooMany => StateChange::TooMany,
                };
                replaced_at = Some(Instant::now() + REPLACED_MAX);
                let _connection_replaced = changes.try_send(change);
            }
            Some(Ok(Frame::Envelope(envelope))) if envelope.kind == Kind::Event => {
                let _command_ended = events.send((envelope, acks.clone())).await;
            }
            Some(Ok(Frame::Envelope(envelope))) => match Arc::clone(&slots).try_acquire_owned() {
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
        silent_at = Instant::now() + SILENCE_MAX; // not before, because ingest may have been slow
    };
    let _connection_replaced = changes.try_send(StateChange::Lost(end));
}

/// Sends a frame. The error is the reason why the connection is lost.
async fn send(socket: &mut Socket, frame: Message) -> Result<(), String> {
    match timeout(SILENCE_MAX, socket.send(frame)).await {
        Ok(sent) => sent.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no frame sent within {SILENCE_MAX:?}")),
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use shared::{
        runtime::config::PostgresConfig,
        store::{KeyRings, PlanMode},
    };
    use tokio::net::{TcpListener, TcpStream};
    use tokio_tungstenite::tungstenite::protocol::Role;

    /// A connection whose other end is silent is lost, although pings are sent.
    #[tokio::test(start_paused = true)]
    async fn loses_silent_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let stream = TcpStream::connect(address).await.expect("a connection");
        let _silent = listener.accept().await.expect("a connection");
        let socket =
            Socket::from_raw_socket(MaybeTlsStream::Plain(stream), Role::Client, None).await;
        let postgres = PostgresConfig {
            url: "postgres://u@127.0.0.1/d".into(),
            ca_file: None,
            max_connections: 1,
        };
        let store = Store::new(&postgres, KeyRings::default(), PlanMode::PerCall).expect("a store");
        let _ = rustls::crypto::ring::default_provider().install_default(); // once in a process
        let ingest = "http://127.0.0.1:1/".parse().expect("a URL");
        let forwarder = Arc::new(Forwarder::new(store, Client::new(), ingest));
        let (events, _waiting) = mpsc::channel(1);
        let (changes, mut state) = mpsc::channel(1);
        let began = Instant::now();
        let served = timeout(4 * SILENCE_MAX, serve(socket, forwarder, events, changes)).await;
        assert_eq!((served, began.elapsed().as_secs()), (Ok(()), SILENCE_MAX.as_secs()));
        let lost = StateChange::Lost("no frame within 75s".into());
        assert_eq!(state.recv().await, Some(lost));
    }
}
