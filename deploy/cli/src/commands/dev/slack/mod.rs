//! Connection to a real workspace by Socket Mode (docs.slack.dev,
//! apis/events-api/using-socket-mode).
//!
//! An envelope is acknowledged after ingest's answer: what Slack counts as taken is stored. Events
//! go through ingest one after the other, in Slack's order; commands and interactions, which wait
//! for an answer of the worker, concurrently. A new connection is opened before an old one ends.

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

/// Maximum number of events that wait for ingest. Beyond it nothing more is read.
const EVENTS_MAX: usize = 64;
/// Maximum number of commands and interactions that wait for their answers.
const INTERACTIONS_MAX: usize = 32;
/// Maximum number of acknowledgements that wait for a connection.
const ACKS_MAX: usize = EVENTS_MAX + INTERACTIONS_MAX;
/// Maximum time of a handshake.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval of pings.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Silence after which a connection counts as lost: two pings and a half.
const SILENCE_MAX: Duration = Duration::from_secs(75);
/// Waits before the next attempt to connect.
const BACKOFF: [Duration; 4] = [
    Duration::from_millis(200),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
];
/// Time for which a connection that is being replaced may still bring and acknowledge webhooks.
const REPLACED_MAX: Duration = Duration::from_secs(30);

/// Relay of webhooks from Slack to ingest.
pub struct Relay {
    forwarder: Arc<Forwarder>,
    api: SlackApi,
    token: Secret,
}

/// News of a connection.
#[derive(Debug, PartialEq, Eq)]
enum News {
    /// The connection works.
    Open,
    /// The connection has to be replaced. It may still bring webhooks.
    Replace,
    /// The connection has ended.
    Lost(String),
    /// Socket Mode is off.
    Disabled,
    /// The app has the most connections that it may have.
    TooMany,
}

/// An event and where its acknowledgement goes.
type WaitingEvent = (Envelope, mpsc::Sender<String>);

impl Relay {
    pub fn new(store: Store, http: Client, ingest: Url, api: SlackApi, token: Secret) -> Self {
        Self { forwarder: Arc::new(Forwarder::new(store, http, ingest)), api, token }
    }

    /// Relays until Slack refuses the token or Socket Mode.
    pub async fn run(self) -> anyhow::Result<()> {
        let (events, waiting) = mpsc::channel(EVENTS_MAX);
        let mut tasks = JoinSet::new();
        tasks.spawn(forward_events(Arc::clone(&self.forwarder), waiting));
        let mut failures = 0;
        loop {
            let address = self.api.open_socket(&self.token).await?;
            let address = match address {
                SocketAddress::Url(url) => url,
                SocketAddress::Refused(code) => bail!("{}", refusal(&code)),
                SocketAddress::Failed(why) => {
                    say(&format!("failed to open a connection: {why}"));
                    pause(&mut failures).await;
                    continue;
                }
            };
            let (tell, mut news) = mpsc::channel(8);
            match timeout(CONNECT_TIMEOUT, connect(&address)).await {
                Ok(Ok(socket)) => {
                    let forwarder = Arc::clone(&self.forwarder);
                    tasks.spawn(serve(socket, forwarder, events.clone(), tell));
                }
                Ok(Err(error)) => {
                    say(&format!("failed to connect: {error:#}"));
                    pause(&mut failures).await;
                    continue;
                }
                Err(_) => {
                    say(&format!("failed to connect within {CONNECT_TIMEOUT:?}"));
                    pause(&mut failures).await;
                    continue;
                }
            }
            while tasks.try_join_next().is_some() {}
            loop {
                match news.recv().await {
                    Some(News::Open) => failures = 0,
                    Some(News::Replace) => break,
                    Some(News::Disabled) => bail!(
                        "Slack ended the connection: Socket Mode is off; \
                         switch it on in the settings of the app, under Socket Mode"
                    ),
                    Some(News::TooMany) => {
                        say("the app has the most connections that Slack allows; end others");
                        pause(&mut failures).await;
                        break;
                    }
                    Some(News::Lost(why)) => {
                        say(&format!("connection lost ({why}); connecting again"));
                        pause(&mut failures).await;
                        break;
                    }
                    None => break,
                }
            }
        }
    }
}

/// Waits before the next attempt: longer after each failure.
async fn pause(failures: &mut usize) {
    tokio::time::sleep(BACKOFF[(*failures).min(BACKOFF.len() - 1)]).await;
    *failures += 1;
}

fn refusal(code: &str) -> String {
    let remedy = match code {
        "missing_scope" | "not_allowed_token_type" => {
            "create an app-level token with the scope connections:write under Basic Information"
        }
        _ => "check the app-level token, and that Socket Mode is on in the settings of the app",
    };
    format!("Slack refused apps.connections.open: {}; {remedy}", output::sanitize(code))
}

fn say(text: &str) {
    let _closed_already = output::print_line(&format!("slack        {text}"));
}

async fn connect(url: &Secret) -> anyhow::Result<Socket> {
    let connected = tokio_tungstenite::connect_async(url.expose()).await;
    // The address has a ticket, which errors of the handshake do not repeat.
    Ok(connected.context("the handshake failed")?.0)
}

/// Forwards events one after the other.
async fn forward_events(forwarder: Arc<Forwarder>, mut waiting: mpsc::Receiver<WaitingEvent>) {
    while let Some((event, acks)) = waiting.recv().await {
        if let Some(ack) = forwarder.forward(&event).await {
            let _lost_with_the_connection = acks.send(ack).await;
        }
    }
}

/// Serves a connection until it ends.
async fn serve(
    mut socket: Socket,
    forwarder: Arc<Forwarder>,
    events: mpsc::Sender<WaitingEvent>,
    tell: mpsc::Sender<News>,
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
                let _noticed_by_the_silence = socket.send(Message::Ping("tidegate".into())).await;
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
                Err(_) => break format!("no sign of life within {SILENCE_MAX:?}"),
                Ok(None | Some(Ok(Message::Close(_)))) => break "closed by Slack".to_owned(),
                Ok(Some(Err(error))) => break error.to_string(),
                Ok(Some(Ok(Message::Text(text)))) => envelope::parse(&text),
                Ok(Some(Ok(_))) => continue,
            },
        };
        match frame {
            Err(_) => say("a frame that is no JSON was ignored"),
            Ok(Frame::Unknown(kind)) => {
                say(&format!("a frame of type {} was ignored", output::sanitize(&kind)));
            }
            Ok(Frame::Hello { connections, app }) => {
                if let Some(app) = &app {
                    forwarder.set_app(app);
                }
                greet(connections, app.as_deref(), &tell).await;
            }
            Ok(Frame::Disconnect(ending)) => {
                let news = match ending {
                    Ending::Refresh => News::Replace,
                    Ending::LinkDisabled => News::Disabled,
                    Ending::TooMany => News::TooMany,
                };
                replaced_at = Some(tokio::time::Instant::now() + REPLACED_MAX);
                let _told_already = tell.try_send(news);
            }
            Ok(Frame::Envelope(envelope)) if envelope.kind == Kind::Event => {
                let _ends_with_the_command = events.send((envelope, acks.clone())).await;
            }
            Ok(Frame::Envelope(envelope)) => match Arc::clone(&slots).try_acquire_owned() {
                Err(_) => say(&format!("more than {INTERACTIONS_MAX} interactions wait; refused")),
                Ok(slot) => {
                    let (forwarder, acks) = (Arc::clone(&forwarder), acks.clone());
                    running.spawn(async move {
                        if let Some(ack) = forwarder.forward(&envelope).await {
                            let _lost_with_the_connection = acks.send(ack).await;
                        }
                        drop(slot);
                    });
                }
            },
        }
    };
    let _told_already = tell.try_send(News::Lost(end));
}

/// Prints that the connection works, and warns of others: Slack sends each webhook to one of them.
async fn greet(connections: u64, app: Option<&str>, tell: &mpsc::Sender<News>) {
    let app = app.map_or_else(String::new, |app| format!(" as app {}", output::sanitize(app)));
    say(&format!("connected{app}"));
    if connections > 1 {
        say(&format!(
            "warning: the app has {connections} connections, and Slack sends each webhook to one \
             of them; end the others"
        ));
    }
    let _told_already = tell.try_send(News::Open);
}
