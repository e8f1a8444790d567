//! Recordings: the content of a stream as a file, which another environment can process.
//!
//! The file has a line of JSON for each message, in the order of the stream: subject, headers, body
//! (in base64 if it is not UTF-8). A new environment gets the same messages, with the same
//! subjects, headers (including the dedup key) and bodies. Connections, agents and codes are not
//! part of a recording: the new environment must have them with the same ids.
//!
//! The time since the recording has these effects:
//!
//! * A `response_url` names the simulated Slack of the recording, which no longer exists. The first
//!   line of the file has its origin. Bodies get the origin of the new Slack instead, and such
//!   webhooks are signed again with the secret of their connection. Nothing else is changed. The
//!   limits of half an hour and five uses start again.
//! * No request of Slack waits for an answer: a submission is answered late (`views.update`), a
//!   menu's options not at all. [`Recording::put`] waits until the last such request is over.
//! * Retries end after a day: a delivery of an older recording that fails once becomes a dead
//!   letter.
//! * A `trigger_id` would have expired. Neither Tidegate nor the sample agent uses one.
//! * Tidegate does not check the age of a webhook otherwise. It compares the time of an app's
//!   removal with the time of the installation, which the connection must have.
//!
//! Conversations are processed concurrently. An effect of one on another (a link that decides which
//! agent answers a message, a removal) has a defined result only after a pause. Where no webhook
//! arrived for [`PAUSE`], the new environment gets the rest when everything before is processed.

use crate::{
    slack::sign,
    test_env::{TIMEOUT, TestEnv},
};
use anyhow::{Context, bail, ensure};
use async_nats::{HeaderMap, HeaderName, HeaderValue, jetstream};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use shared::{
    domain::ConnectionId,
    stream::{DEDUP_KEY_HEADER, ReaderEvent, STREAM, StreamReader, parse_subject},
};
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Minimum time between two webhooks that makes [`Recording::put`] wait until everything before is
/// processed.
pub const PAUSE: Duration = Duration::from_millis(300);
/// Maximum time to process the messages between two pauses.
const PROCESSED_WITHIN: Duration = Duration::from_secs(60);
/// Maximum number of messages of a recording, which is held in memory.
const MESSAGES_MAX: usize = 100_000;
/// Maximum number of unconfirmed messages.
const UNCONFIRMED_MAX: usize = 256;
/// Maximum time that Slack waits for an answer.
const WINDOW_MAX: Duration = Duration::from_secs(3);
/// Version of the file format.
const LAYOUT: u32 = 1;
/// Origin of real `response_url`s, used as a placeholder for the origin of a simulated Slack.
pub const ANY_SLACK: &str = "https://hooks.slack.com";

const RECEIVED_AT: &str = "Tidegate-Received-At";
const KIND: &str = "Tidegate-Kind";
const LANE: &str = "Tidegate-Lane";
const CONTENT_TYPE: &str = "Tidegate-Content-Type";
const REPLY_BY: &str = "Tidegate-Reply-By";
const SIGNATURE: &str = "X-Slack-Signature";
const TIMESTAMP: &str = "X-Slack-Request-Timestamp";

/// Content of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recording {
    /// Origin of the `response_url`s.
    pub slack: String,
    /// Messages in the order of the stream.
    pub messages: Vec<Recorded>,
}

/// A message of the stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Line", into = "Line")]
pub struct Recorded {
    /// Subject.
    pub subject: String,
    /// Headers.
    pub headers: BTreeMap<String, String>,
    /// Body, as signed by Slack.
    pub body: Vec<u8>,
}

/// First line of a file.
#[derive(Serialize, Deserialize)]
struct Head {
    recording: u32,
    slack: String,
}

/// A message in a file.
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
            _ => return Err("a message needs either `body` or `base64`".into()),
        };
        Ok(Self { subject, headers, body })
    }
}

impl Recorded {
    /// Returns a header; empty if it does not exist.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }

    /// Returns the dedup key.
    pub fn key(&self) -> &str {
        self.header(DEDUP_KEY_HEADER)
    }

    /// Returns the lane.
    pub fn lane(&self) -> &str {
        self.header(LANE)
    }

    fn received_at(&self) -> Option<u64> {
        self.header(RECEIVED_AT).parse().ok()
    }
}

impl Recording {
    /// Records the stream of an environment.
    ///
    /// # Errors
    /// Errors of NATS, or if the stream has too many messages.
    pub async fn of(env: &TestEnv) -> anyhow::Result<Self> {
        let js = jetstream::new(env.client().clone());
        let mut reader =
            StreamReader::new(js, STREAM, "slack.in.*.*".into(), "recording".into(), 1);
        let mut messages = Vec::new();
        loop {
            let followed = tokio::time::timeout(TIMEOUT, reader.next()).await;
            match followed.context("timed out reading the stream")? {
                ReaderEvent::Opened(_) => {}
                ReaderEvent::CaughtUp(..) => break,
                ReaderEvent::Message(_, message) => {
                    ensure!(
                        messages.len() < MESSAGES_MAX,
                        "the stream has more than {MESSAGES_MAX} messages"
                    );
                    messages.push(recorded(&message)?);
                }
            }
        }
        Ok(Self { slack: env.slack.response_origin(), messages })
    }

    /// Writes a file.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let head = Head { recording: LAYOUT, slack: self.slack.clone() };
        let mut text = serde_json::to_string(&head)? + "\n";
        for message in &self.messages {
            text += &(serde_json::to_string(message)? + "\n");
        }
        std::fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If there is no file, or with the number of an invalid line.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path);
        let text = text.with_context(|| format!("failed to read {}", path.display()))?;
        let mut lines = text.lines().enumerate();
        let head = lines.next().map(|(_, line)| serde_json::from_str::<Head>(line));
        let Some(Ok(Head { recording: LAYOUT, slack })) = head else {
            bail!("{} is not a recording of version {LAYOUT}", path.display());
        };
        let message = |(n, line)| {
            let read = serde_json::from_str::<Recorded>(line);
            read.with_context(|| format!("line {} of {}", n + 1, path.display()))
        };
        Ok(Self { slack, messages: lines.map(message).collect::<anyhow::Result<_>>()? })
    }

    /// Publishes the messages to the stream of a new environment. With pauses a worker must run.
    ///
    /// # Errors
    /// If the stream has messages, a connection is missing, NATS rejects a message, or processing
    /// takes too long.
    pub async fn put(&self, env: &TestEnv) -> anyhow::Result<()> {
        let there = env.stored().await?;
        ensure!(there == 0, "the stream has {there} messages; use a new environment");
        self.wait_for_windows().await;
        let js = jetstream::new(env.client().clone());
        let mut secrets = HashMap::new();
        for (n, stretch) in self.stretches().into_iter().enumerate() {
            if n > 0 {
                env.wait_until_processed(PROCESSED_WITHIN).await?;
            }
            for batch in stretch.chunks(UNCONFIRMED_MAX) {
                let mut unconfirmed = Vec::new();
                for message in batch {
                    let message = self.for_env(env, message, &mut secrets).await?;
                    let (subject, headers) = (message.subject.clone(), headers(&message)?);
                    let put = js.publish_with_headers(subject, headers, message.body.into());
                    unconfirmed.push(put.await.context("failed to publish a message")?);
                }
                for confirmed in unconfirmed {
                    confirmed.await.context("failed to store a message")?;
                }
            }
        }
        Ok(())
    }

    /// Splits the messages at pauses.
    fn stretches(&self) -> Vec<&[Recorded]> {
        self.messages
            .chunk_by(|one, next| {
                let times = one.received_at().zip(next.received_at());
                times.is_none_or(|(one, next)| next.saturating_sub(one) < PAUSE.as_millis() as u64)
            })
            .collect()
    }

    /// Waits until no request of Slack waits for an answer.
    async fn wait_for_windows(&self) {
        let until = self.messages.iter().filter_map(|m| m.header(REPLY_BY).parse::<u64>().ok());
        let until = UNIX_EPOCH + Duration::from_millis(until.max().unwrap_or_default() + 1);
        let left = until.duration_since(SystemTime::now()).unwrap_or_default();
        tokio::time::sleep(left.min(WINDOW_MAX)).await;
    }

    /// Returns the message as the simulated Slack of this environment would send it. Registers the
    /// conversations and ids that it names there.
    async fn for_env(
        &self,
        env: &TestEnv,
        message: &Recorded,
        secrets: &mut HashMap<ConnectionId, String>,
    ) -> anyhow::Result<Recorded> {
        let mut message = message.clone();
        let Some((_, connection)) = parse_subject(&message.subject) else { return Ok(message) };
        let secret = match secrets.get(&connection) {
            Some(secret) => secret,
            None => {
                let row = env.store.load_connection(connection).await?;
                let row = row.with_context(|| {
                    format!("connection {connection} is not in this environment; declare it first")
                })?;
                secrets.entry(connection).or_insert(row.signing_secret.expose().to_owned())
            }
        };
        let here = env.slack.response_origin();
        if let Some(body) = replace_origin(&message.body, &self.slack, &here) {
            let signature = sign(secret, message.header(TIMESTAMP), &body);
            message.headers.insert(SIGNATURE.into(), signature);
            message.body = body;
        }
        env.slack.adopt(&message.body);
        Ok(message)
    }

    /// Returns a digest that excludes what depends on chance and time: the same for every recording
    /// of the same webhooks.
    pub fn digest(&self) -> String {
        let mut lines: Vec<String> = self.messages.iter().map(|m| self.stable_text(m)).collect();
        lines.sort_unstable(); // conversations are concurrent
        let hash: [u8; 32] = Sha256::digest(lines.join("\n").as_bytes()).into();
        hash.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"))
    }

    fn stable_text(&self, message: &Recorded) -> String {
        let any = replace_origin(&message.body, &self.slack, ANY_SLACK);
        let body = any.as_ref().unwrap_or(&message.body);
        [
            &message.subject,
            message.header(KIND),
            message.lane(),
            message.header(CONTENT_TYPE),
            &stable_key(message.key()),
            &String::from_utf8_lossy(body),
        ]
        .join(" ")
    }
}

/// Returns a dedup key without the parts that differ between runs: random ids, and hashes of
/// bodies, which may have the origin of a `response_url`.
pub fn stable_key(key: &str) -> String {
    match key.split(':').collect::<Vec<_>>()[..] {
        [connection, sort @ ("options" | "body"), _] => format!("{connection}:{sort}:*"),
        _ => key.to_owned(),
    }
}

/// Replaces the origin of URLs in a body. Returns `None` if no URL has that origin.
pub fn replace_origin(body: &[u8], from: &str, to: &str) -> Option<Vec<u8>> {
    let text = str::from_utf8(body).ok()?;
    let in_form = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    // With the slash, because port 4711 is a prefix of 47112.
    let (from, to) = (format!("{from}/"), format!("{to}/"));
    let changed = text.replace(&from, &to).replace(&in_form(&from), &in_form(&to));
    (changed != text).then(|| changed.into_bytes())
}

fn recorded(message: &async_nats::Message) -> anyhow::Result<Recorded> {
    let mut headers = BTreeMap::new();
    for (name, values) in message.headers.iter().flat_map(|headers| headers.iter()) {
        let [value] = &values[..] else {
            bail!("the message on {} has the header {name} {} times", message.subject, values.len())
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
