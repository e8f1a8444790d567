//! A recording: what lay in the stream, as a file, and put into another stream to be worked off again.
//!
//! In: a world whose stream holds webhooks, or a file. Out: a file of envelopes, a line of JSON for each message, in the order
//! of the stream: subject, headers, body (in base64 where it is no text); or the same messages in a fresh world, with the same
//! subjects, headers (the dedupe key among them) and bodies. Connections, agents and codes are no part of it: they have to be
//! in the fresh world under the same ids before.
//!
//! What the time since the recording changes:
//!
//! * A `response_url` leads to the Slack that made it, and that Slack is gone. Its origin stands in the file's first line; where a
//!   body names it, it is replaced by the new world's Slack, and the webhook signed anew with its connection's secret.
//!   Nothing else is touched. Half an hour and five uses begin anew.
//! * Nobody waits for an answer in Slack's own request any more: a submission is answered the late way (`views.update`), a
//!   menu's options not at all. [`Recording::put`] waits until the youngest such window is over, so that it is always so.
//! * What is retried is given up after a day: of an older recording, whatever fails once is dead.
//! * A `trigger_id` would have run out. Neither Tidegate nor the sample agent uses one, so it makes no difference here.
//! * Nothing else in Tidegate judges a webhook's age. An uninstall is compared with the time of the installation: whoever
//!   declares the connections gives that, too.
//!
//! Conversations run beside each other, so what one changes for another (a link and a message that is answered by it, an
//! uninstall) has a defined result only with a pause between. Where nothing came for [`PAUSE`], the fresh world gets the rest
//! when all before it is worked off.

use crate::{
    slack::sign,
    world::{SOON, World},
};
use anyhow::{Context, bail, ensure};
use async_nats::{HeaderMap, HeaderName, HeaderValue, jetstream};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use shared::{
    codec::envelope::MSG_ID,
    follow::{Follow, Followed},
    stream::{STREAM, parse_subject},
    types::ConnectionId,
};
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Without a webhook for this long, all before is worked off before what comes after is put in.
pub const PAUSE: Duration = Duration::from_millis(300);
/// Longest that what was put in may take to be worked off, up to the next pause.
const WORKED_OFF_WITHIN: Duration = Duration::from_secs(60);
/// A recording lies in memory: so many messages are one.
const MESSAGES_MAX: usize = 100_000;
/// Messages on their way to JetStream at once.
const UNCONFIRMED_MAX: usize = 256;
/// No window for an answer is longer.
const WINDOW_MAX: Duration = Duration::from_secs(3);
/// The layout of the file.
const LAYOUT: u32 = 1;
/// Where real `response_url`s lead: the name of any Slack where it must not matter which it was.
pub const ANY_SLACK: &str = "https://hooks.slack.com";

const RECEIVED_AT: &str = "Tidegate-Received-At";
const KIND: &str = "Tidegate-Kind";
const LANE: &str = "Tidegate-Lane";
const CONTENT_TYPE: &str = "Tidegate-Content-Type";
const REPLY_BY: &str = "Tidegate-Reply-By";
const SIGNATURE: &str = "X-Slack-Signature";
const TIMESTAMP: &str = "X-Slack-Request-Timestamp";

/// What lay in a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    /// Where the `response_url`s of the Slack led that the webhooks came from.
    pub slack: String,
    /// In the order of the stream.
    pub messages: Vec<Recorded>,
}

/// A message of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Line", into = "Line")]
pub struct Recorded {
    /// What it was published to.
    pub subject: String,
    /// What it bore, each header once.
    pub headers: BTreeMap<String, String>,
    /// What Slack signed.
    pub body: Vec<u8>,
}

/// The first line of a file.
#[derive(Serialize, Deserialize)]
struct Head {
    recording: u32,
    slack: String,
}

/// A message as it stands in a file.
#[derive(Serialize, Deserialize)]
struct Line {
    subject: String,
    headers: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base64: Option<String>,
}

impl From<Recorded> for Line {
    fn from(Recorded { subject, headers, body }: Recorded) -> Self {
        match String::from_utf8(body) {
            Ok(text) => Self { subject, headers, body: Some(text), base64: None },
            Err(no_text) => {
                let bytes = Some(BASE64.encode(no_text.as_bytes()));
                Self { subject, headers, body: None, base64: bytes }
            }
        }
    }
}

impl TryFrom<Line> for Recorded {
    type Error = String;
    fn try_from(Line { subject, headers, body, base64 }: Line) -> Result<Self, String> {
        let body = match (body, base64) {
            (Some(text), None) => text.into_bytes(),
            (None, Some(bytes)) => BASE64.decode(bytes).map_err(|error| error.to_string())?,
            _ => return Err("a message has either a body or a base64".into()),
        };
        Ok(Self { subject, headers, body })
    }
}

impl Recorded {
    /// One of its headers; empty if it has no such.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }

    /// What a copy of it is known by.
    pub fn key(&self) -> &str {
        self.header(MSG_ID)
    }

    /// The conversation that it stands in order in.
    pub fn lane(&self) -> &str {
        self.header(LANE)
    }

    fn received_at(&self) -> Option<u64> {
        self.header(RECEIVED_AT).parse().ok()
    }
}

impl Recording {
    /// Everything that lies in a world's stream.
    ///
    /// # Errors
    /// What NATS said, or when that is more than a recording holds.
    pub async fn of(world: &World) -> anyhow::Result<Self> {
        let js = jetstream::new(world.client().clone());
        let mut follow = Follow::new(js, STREAM, "slack.in.*.*".into(), "recording".into(), 1);
        let mut messages = Vec::new();
        loop {
            let followed = tokio::time::timeout(SOON, follow.next()).await;
            match followed.context("the stream is not to be read")? {
                Followed::Opened(_) => {}
                Followed::CaughtUp(..) => break,
                Followed::Message(_, message) => {
                    ensure!(messages.len() < MESSAGES_MAX, "over {MESSAGES_MAX} messages");
                    messages.push(recorded(&message)?);
                }
            }
        }
        Ok(Self { slack: world.slack.response_origin(), messages })
    }

    /// Writes it to a file.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let head = Head { recording: LAYOUT, slack: self.slack.clone() };
        let mut text = serde_json::to_string(&head)? + "\n";
        for message in &self.messages {
            text += &(serde_json::to_string(message)? + "\n");
        }
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Reads it from a file.
    ///
    /// # Errors
    /// When there is none, or with the line that is none of a recording.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        let mut lines = text.lines().enumerate();
        let head = lines.next().map(|(_, line)| serde_json::from_str::<Head>(line));
        let Some(Ok(Head { recording: LAYOUT, slack })) = head else {
            bail!("{} is no recording of layout {LAYOUT}", path.display());
        };
        let message = |(n, line)| {
            let read = serde_json::from_str::<Recorded>(line);
            read.with_context(|| format!("line {} of {}", n + 1, path.display()))
        };
        Ok(Self { slack, messages: lines.map(message).collect::<anyhow::Result<_>>()? })
    }

    /// Puts it into a fresh world's stream. With pauses in it, some worker has to be there to work off what is before them.
    ///
    /// # Errors
    /// When the stream holds something, a connection is not there, NATS does not take it, or it is not worked off in time.
    pub async fn put(&self, world: &World) -> anyhow::Result<()> {
        let there = world.stored().await?;
        ensure!(
            there == 0,
            "{there} messages lie in the stream: a recording goes into a fresh one"
        );
        self.windows_are_over().await;
        let js = jetstream::new(world.client().clone());
        let mut secrets = HashMap::new();
        for (n, stretch) in self.stretches().into_iter().enumerate() {
            if n > 0 {
                world.worked_off(WORKED_OFF_WITHIN).await?;
            }
            for some in stretch.chunks(UNCONFIRMED_MAX) {
                let mut unconfirmed = Vec::new();
                for message in some {
                    let message = self.of_now(world, message, &mut secrets).await?;
                    let (subject, headers) = (message.subject.clone(), headers(&message)?);
                    let put = js.publish_with_headers(subject, headers, message.body.into());
                    unconfirmed.push(put.await.context("NATS does not take a message")?);
                }
                for confirmed in unconfirmed {
                    confirmed.await.context("JetStream does not store a message")?;
                }
            }
        }
        Ok(())
    }

    /// Split where nothing came for a while.
    fn stretches(&self) -> Vec<&[Recorded]> {
        self.messages
            .chunk_by(|one, next| {
                let times = one.received_at().zip(next.received_at());
                times.is_none_or(|(one, next)| next.saturating_sub(one) < PAUSE.as_millis() as u64)
            })
            .collect()
    }

    /// Waits until nobody waits for an answer to any of it.
    async fn windows_are_over(&self) {
        let until = self.messages.iter().filter_map(|m| m.header(REPLY_BY).parse::<u64>().ok());
        let until = UNIX_EPOCH + Duration::from_millis(until.max().unwrap_or_default() + 1);
        let left = until.duration_since(SystemTime::now()).unwrap_or_default();
        tokio::time::sleep(left.min(WINDOW_MAX)).await;
    }

    /// The message as this world's Slack would have sent it, which has to know what it names.
    async fn of_now(
        &self,
        world: &World,
        message: &Recorded,
        secrets: &mut HashMap<ConnectionId, String>,
    ) -> anyhow::Result<Recorded> {
        let mut message = message.clone();
        let Some((_, connection)) = parse_subject(&message.subject) else { return Ok(message) };
        let secret = match secrets.get(&connection) {
            Some(secret) => secret,
            None => {
                let row = world.store.hydrate_connection(connection).await?;
                let row = row.with_context(|| {
                    format!("connection {connection} is not in this world: declare it first")
                })?;
                secrets.entry(connection).or_insert(row.signing_secret.expose().to_owned())
            }
        };
        let here = world.slack.response_origin();
        if let Some(body) = readdressed(&message.body, &self.slack, &here) {
            let signature = sign(secret, message.header(TIMESTAMP), &body);
            message.headers.insert(SIGNATURE.into(), signature);
            message.body = body;
        }
        world.slack.adopt(&message.body);
        Ok(message)
    }

    /// A name for what is in it, without what chance and time have given: the same for every recording of the same webhooks.
    pub fn digest(&self) -> String {
        let mut lines: Vec<String> = self.messages.iter().map(|m| self.lasting(m)).collect();
        lines.sort_unstable(); // conversations run beside each other
        let hash: [u8; 32] = Sha256::digest(lines.join("\n").as_bytes()).into();
        hash.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }

    fn lasting(&self, message: &Recorded) -> String {
        let any = readdressed(&message.body, &self.slack, ANY_SLACK);
        let body = any.as_ref().unwrap_or(&message.body);
        [
            &message.subject,
            message.header(KIND),
            message.lane(),
            message.header(CONTENT_TYPE),
            &lasting_key(message.key()),
            &String::from_utf8_lossy(body),
        ]
        .join(" ")
    }
}

/// A dedupe key without what chance or the time of signing gave it.
pub fn lasting_key(key: &str) -> String {
    match key.split(':').collect::<Vec<_>>()[..] {
        [connection, sort @ ("options" | "body"), _] => format!("{connection}:{sort}:*"),
        _ => key.to_owned(),
    }
}

/// A body in which addresses at one Slack lead to another; none if there are none.
pub fn readdressed(body: &[u8], from: &str, to: &str) -> Option<Vec<u8>> {
    let text = str::from_utf8(body).ok()?;
    let in_form = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    // With the slash behind it, or port 4711 would be found in 47112.
    let (from, to) = (format!("{from}/"), format!("{to}/"));
    let changed = text.replace(&from, &to).replace(&in_form(&from), &in_form(&to));
    (changed != text).then(|| changed.into_bytes())
}

fn recorded(message: &async_nats::Message) -> anyhow::Result<Recorded> {
    let mut headers = BTreeMap::new();
    for (name, values) in message.headers.iter().flat_map(|headers| headers.iter()) {
        let [value] = &values[..] else {
            bail!("a message to {} bears {name} {} times", message.subject, values.len())
        };
        headers.insert(name.to_string(), value.to_string());
    }
    let (subject, body) = (message.subject.to_string(), message.payload.to_vec());
    Ok(Recorded { subject, headers, body })
}

fn headers(message: &Recorded) -> anyhow::Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in &message.headers {
        let named = || format!("{name} of {}", message.key());
        let name: HeaderName = name.parse().with_context(named)?;
        headers.insert(name, value.parse::<HeaderValue>().with_context(named)?);
    }
    Ok(headers)
}
