//! Whose webhooks are sent, and what they look like.
//!
//! In: a number. Out: a whole HTTP request: an event of 2 KiB with an id made of that number, from one of the tenants,
//! signed with that tenant's secret. The same number is the same webhook.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use shared::{
    codec::{
        envelope::{DedupeKey, Envelope, Word},
        slack::Media,
    },
    partition::{Conversation, Lane, Partition},
    types::{ConnectionId, Kind},
};
use std::{
    io::Write,
    time::{SystemTime, UNIX_EPOCH},
};

/// Bytes of a body, unless something else is said.
pub const BODY_BYTES: usize = 2048;
/// Conversations are spread over so many channels of a tenant.
const CHANNELS: u64 = 512;

/// Those that send.
pub struct Tenants(Vec<Tenant>);

/// What they send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// An event that no agent is asked about, so that what is measured is the way and not the destination.
    Reaction,
    /// A message, for the agent of its conversation.
    Message,
}

/// One that sends.
pub struct Tenant {
    /// Its connection.
    pub id: ConnectionId,
    /// Its signing secret.
    pub secret: String,
    key: Hmac<Sha256>,
    event: Event,
}

/// How the server under load is addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// As ingest is: the path names the connection.
    Connection,
    /// As the ceilings are: one path, one secret, the first tenant's.
    Root,
}

impl Tenants {
    /// Some that nobody knows yet.
    pub fn random(count: usize) -> anyhow::Result<Self> {
        let tenant = |_| {
            let secret =
                format!("{:032x}", u128::from_be_bytes(ConnectionId::random()?.to_bytes()));
            Ok(Tenant::new(ConnectionId::random()?, secret))
        };
        (0..count).map(tenant).collect::<anyhow::Result<_>>().map(Self)
    }

    /// These.
    pub fn of(tenants: impl IntoIterator<Item = (ConnectionId, String)>) -> Self {
        Self(tenants.into_iter().map(|(id, secret)| Tenant::new(id, secret)).collect())
    }

    /// They send messages.
    pub fn with_messages(mut self) -> Self {
        self.0.iter_mut().for_each(|tenant| tenant.event = Event::Message);
        self
    }

    /// All.
    pub fn all(&self) -> &[Tenant] {
        &self.0
    }

    fn of_number(&self, number: u64) -> &Tenant {
        // Scattered: with many tenants the next is never the one just used.
        let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        &self.0[scattered as usize % self.0.len()]
    }

    /// Writes a request, in place of what was there.
    pub fn write(&self, way: Way, number: u64, request: &mut Vec<u8>) {
        request.clear();
        let tenant = match way {
            Way::Connection => self.of_number(number),
            Way::Root => &self.0[0],
        };
        let body = tenant.body(number, BODY_BYTES);
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
        let path = match way {
            Way::Connection => format!("/api/v1/webhooks/{}", tenant.id),
            Way::Root => "/".into(),
        };
        let signature = tenant.sign(timestamp, &body);
        let written = write!(
            request,
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nuser-agent: Slackbot 1.0 (+https://api.slack.com/robots)\r\n\
             accept-encoding: gzip,deflate\r\naccept: */*\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
             x-slack-signature: {signature}\r\nx-slack-request-timestamp: {timestamp}\r\n\r\n",
            body.len()
        );
        written.expect("writing to memory does not fail");
        request.extend_from_slice(&body);
    }

    /// The webhook as ingest would store it, of `bytes` bytes.
    pub fn envelope(&self, number: u64, bytes: usize) -> Envelope {
        self.of_number(number).envelope(number, bytes)
    }
}

impl Tenant {
    fn new(id: ConnectionId, secret: String) -> Self {
        let key = Hmac::new_from_slice(secret.as_bytes()).expect("a key of any length");
        Self { id, secret, key, event: Event::Reaction }
    }

    /// A webhook of its own, as ingest would store it.
    pub fn envelope(&self, number: u64, bytes: usize) -> Envelope {
        let (id, channel) = (self.id, channel(number));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let word = |text: String| Word::new(text).expect("a plain word");
        Envelope {
            connection: id,
            partition: Partition::of(id, Some(&channel)),
            kind: Kind::Event,
            lane: Lane::of(id, Conversation::Thread(&channel, &ts(number))),
            dedupe: DedupeKey::event(id, &event_id(number)),
            received_at_ms: now.as_millis() as u64,
            media: Media::Json,
            signature: word(format!("v0={:064x}", 0)),
            timestamp: word(now.as_secs().to_string()),
            retry: None,
            traceparent: None,
            reply: None,
            body: self.body(number, bytes).into(),
        }
    }

    fn body(&self, number: u64, bytes: usize) -> Vec<u8> {
        let mut body = Vec::with_capacity(bytes);
        let (id, channel, ts) = (event_id(number), channel(number), ts(number));
        let event = match self.event {
            Event::Reaction => format!(
                r#""type":"reaction_added","user":"U00000001","reaction":"thumbsup","item_user":"U00000002","item":{{"type":"message","channel":"{channel}","ts":"{ts}"}}"#
            ),
            Event::Message => format!(
                r#""type":"message","user":"U00000001","text":"hello","channel":"{channel}","channel_type":"channel","ts":"{ts}""#
            ),
        };
        let written = write!(
            body,
            r#"{{"token":"legacy-token","team_id":"T00000001","api_app_id":"A00000001","event":{{{event},"event_ts":"{ts}"}},"type":"event_callback","event_id":"{id}","event_time":1700000000,"authorizations":[{{"enterprise_id":null,"team_id":"T00000001","user_id":"U0BOT","is_bot":true,"is_enterprise_install":false}}],"is_ext_shared_channel":false,"event_context":""#
        );
        written.expect("writing to memory does not fail");
        // What fills it must not compress to nothing: the stream is compressed.
        let mut random = number.wrapping_mul(0x2545_f491_4f6c_dd1d) | 1;
        while body.len() + 2 < bytes {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            body.push(b"abcdefghijklmnopqrstuvwxyzABCDEF"[(random & 31) as usize]);
        }
        body.extend_from_slice(b"\"}");
        body
    }

    fn sign(&self, timestamp: u64, body: &[u8]) -> String {
        let mut mac = self.key.clone();
        mac.update(format!("v0:{timestamp}:").as_bytes());
        mac.update(body);
        let tag = mac.finalize().into_bytes();
        let mut text = String::with_capacity(67);
        text.push_str("v0=");
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        for byte in tag {
            text.push(DIGITS[usize::from(byte >> 4)].into());
            text.push(DIGITS[usize::from(byte & 15)].into());
        }
        text
    }
}

/// The id of the event of this number.
pub fn event_id(number: u64) -> String {
    format!("Ev{number:016X}")
}

/// The number that a dedupe key of ours was made of.
pub fn number_of(dedupe: &str) -> Option<u64> {
    u64::from_str_radix(dedupe.rsplit_once(":Ev")?.1, 16).ok()
}

fn channel(number: u64) -> String {
    format!("C{:08}", number % CHANNELS)
}

fn ts(number: u64) -> String {
    format!("17{:08}.{:06}", number / 1_000_000, number % 1_000_000)
}
