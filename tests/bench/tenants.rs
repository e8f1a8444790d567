//! Tenants and their webhooks.
//!
//! A number determines a webhook: an event of 2 KiB from one of the tenants, signed with its
//! secret, with an id that contains the number.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use shared::{
    domain::{ConnectionId, HeaderToken, MediaType, WebhookKind},
    stream::{Conversation, DedupKey, Envelope, Lane, Partition},
};
use std::{
    io::Write,
    time::{SystemTime, UNIX_EPOCH},
};
use tests::test_env::App;

/// Default size of a body in bytes.
pub const BODY_BYTES: usize = 2048;
/// Number of channels over which the conversations of a tenant are spread.
const CHANNELS: u64 = 512;

/// Tenants that send webhooks.
pub struct Tenants(Vec<Tenant>);

/// Kind of event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A reaction, which calls no agent, so that agents are not measured.
    Reaction,
    /// A message, which calls the agent of its conversation.
    Message,
}

/// A tenant.
pub struct Tenant {
    /// Connection.
    pub id: ConnectionId,
    /// Signing secret.
    pub secret: String,
    /// Its Slack app.
    pub app: String,
    /// Its workspace.
    pub team: String,
    key: Hmac<Sha256>,
    event: Event,
}

/// Address and secret that a webhook uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// For ingest: the path names the connection.
    Connection,
    /// For the baselines: one path, and the secret of the first tenant.
    Root,
}

impl Tenants {
    /// Returns new tenants.
    pub fn random(count: usize) -> anyhow::Result<Self> {
        let tenant = |n| {
            let secret =
                format!("{:032x}", u128::from_be_bytes(ConnectionId::random()?.to_bytes()));
            let (app, team) = (format!("A{n:08}"), format!("T{n:08}"));
            Ok(Tenant::new(ConnectionId::random()?, secret, app, team))
        };
        (0..count).map(tenant).collect::<anyhow::Result<_>>().map(Self)
    }

    /// Returns tenants of existing connections.
    pub fn of<'a>(apps: impl IntoIterator<Item = &'a App>) -> Self {
        let tenant = |app: &App| {
            let App { connection, secret, app, team, .. } = app.clone();
            Tenant::new(connection, secret, app, team)
        };
        Self(apps.into_iter().map(tenant).collect())
    }

    /// Makes the tenants send messages instead of reactions.
    pub fn with_messages(mut self) -> Self {
        self.0.iter_mut().for_each(|tenant| tenant.event = Event::Message);
        self
    }

    /// Returns all tenants.
    pub fn all(&self) -> &[Tenant] {
        &self.0
    }

    /// Splits off the last tenant.
    pub fn split_last(mut self) -> (Self, Self) {
        let last = self.0.split_off(self.0.len().saturating_sub(1));
        (self, Self(last))
    }

    fn of_number(&self, number: u64) -> &Tenant {
        // Scattered, so that with many tenants consecutive webhooks come from different tenants.
        let scattered = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        &self.0[scattered as usize % self.0.len()]
    }

    /// Replaces `request` with the request of a number.
    pub fn write(&self, way: Way, number: u64, request: &mut Vec<u8>) {
        self.write_sized(way, number, BODY_BYTES, request);
    }

    /// Replaces `request` with the request of a number and a body of `bytes` bytes.
    pub fn write_sized(&self, way: Way, number: u64, bytes: usize, request: &mut Vec<u8>) {
        request.clear();
        let tenant = match way {
            Way::Connection => self.of_number(number),
            Way::Root => &self.0[0],
        };
        let body = tenant.body(number, bytes);
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

    /// Returns the envelope of a number with `bytes` bytes, as ingest would store it.
    pub fn envelope(&self, number: u64, bytes: usize) -> Envelope {
        self.of_number(number).envelope(number, bytes)
    }
}

impl Tenant {
    fn new(id: ConnectionId, secret: String, app: String, team: String) -> Self {
        let key = Hmac::new_from_slice(secret.as_bytes()).expect("a key of any length");
        Self { id, secret, app, team, key, event: Event::Reaction }
    }

    /// Returns a webhook of the tenant, as ingest would store it.
    pub fn envelope(&self, number: u64, bytes: usize) -> Envelope {
        let (id, channel) = (self.id, channel(number));
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let word = |text: String| HeaderToken::new(text).expect("a valid header value");
        Envelope {
            connection: id,
            partition: Partition::of(id, Some(&channel)),
            kind: WebhookKind::Event,
            lane: Lane::of(id, Conversation::Thread(&channel, &ts(number))),
            dedup_key: DedupKey::event(id, &event_id(number)),
            received_at_ms: now.as_millis() as u64,
            media: MediaType::Json,
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
        let Self { app, team, .. } = self;
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
            r#"{{"token":"legacy-token","team_id":"{team}","api_app_id":"{app}","event":{{{event},"event_ts":"{ts}"}},"type":"event_callback","event_id":"{id}","event_time":1700000000,"authorizations":[{{"enterprise_id":null,"team_id":"{team}","user_id":"U0BOT","is_bot":true,"is_enterprise_install":false}}],"is_ext_shared_channel":false,"event_context":""#
        );
        written.expect("writing to memory does not fail");
        // Random filler, so that the body does not compress well.
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

/// Returns the event id of a number.
pub fn event_id(number: u64) -> String {
    format!("Ev{number:016X}")
}

/// Returns the number of a dedup key.
pub fn number_of(dedup_key: &str) -> Option<u64> {
    u64::from_str_radix(dedup_key.rsplit_once(":Ev")?.1, 16).ok()
}

fn channel(number: u64) -> String {
    format!("C{:08}", number % CHANNELS)
}

fn ts(number: u64) -> String {
    format!("17{:08}.{:06}", number / 1_000_000, number % 1_000_000)
}
