//! Form of a webhook in the stream: headers that describe it, and the body that Slack signed.
//!
//! Ingest writes envelopes. Workers, the command line and the tests read them. Body and signature
//! are stored unchanged, so that a worker can verify the signature and a replay equals the original
//! webhook. A value from Slack enters a header only as a hash or as a [`HeaderToken`]: async-nats
//! panics on a line break in a header value.
//!
//! `Tidegate-Schema` is the version of the format. A newer version is [`DecodeError::Newer`]: the
//! reader holds the partition for a newer release. All other failures are
//! [`DecodeError::Undecodable`], and become dead letters.

use crate::{
    domain::{ConnectionId, HeaderToken, MediaType, WebhookKind},
    stream::{self, Lane, Partition},
};
use async_nats::{HeaderMap, HeaderName, HeaderValue};
use bytes::Bytes;
use sha2::{Digest, Sha256};
use std::fmt;

/// Format version that this release writes, and the newest that it reads.
pub const ENVELOPE_SCHEMA: u16 = 1;

/// Response of ingest to a worker whose sync response was relayed to Slack.
pub const RESPONSE_RELAYED: &str = "relayed";
/// Response of ingest to a worker whose sync response arrived after Slack's request ended.
pub const RESPONSE_LATE: &str = "late";

/// HTTP header of a webhook that a worker forwards to an app, with the id of the delivery, the same
/// for every attempt.
pub const FORWARDED_DELIVERY: &str = "tidegate-delivery";

/// Header that holds the dedup key.
pub const DEDUP_KEY_HEADER: &str = "Nats-Msg-Id";
const SCHEMA_HEADER: &str = "Tidegate-Schema";
const KIND: &str = "Tidegate-Kind";
const LANE: &str = "Tidegate-Lane";
const RECEIVED_AT: &str = "Tidegate-Received-At";
const CONTENT_TYPE: &str = "Tidegate-Content-Type";
const REPLY_TO: &str = "Tidegate-Reply-To";
const REPLY_BY: &str = "Tidegate-Reply-By";
const SIGNATURE: &str = "X-Slack-Signature";
const TIMESTAMP: &str = "X-Slack-Request-Timestamp";
const RETRY_NUM: &str = "X-Slack-Retry-Num";
const RETRY_REASON: &str = "X-Slack-Retry-Reason";
const TRACEPARENT: &str = "traceparent";

/// Webhook as stored in the stream.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// Connection that received the webhook.
    pub connection: ConnectionId,
    /// Partition of the webhook.
    pub partition: Partition,
    /// Kind of the webhook.
    pub kind: WebhookKind,
    /// Lane that orders the webhook.
    pub lane: Lane,
    /// Idempotency key, shared by Slack's retries.
    pub dedup_key: DedupKey,
    /// Time at which ingest had read the request, in milliseconds since 1970.
    pub received_at_ms: u64,
    /// Media type of the body.
    pub media: MediaType,
    /// Slack's signature, as sent.
    pub signature: HeaderToken,
    /// Second at which Slack signed, as sent.
    pub timestamp: HeaderToken,
    /// Retry headers, if Slack sent the webhook before.
    pub retry: Option<RetryHeaders>,
    /// W3C trace context of the request.
    pub traceparent: Option<HeaderToken>,
    /// Address and deadline of the sync response, if Slack expects one.
    pub reply: Option<SyncResponseWindow>,
    /// Exact bytes that Slack signed.
    pub body: Bytes,
}

/// `X-Slack-Retry-*` headers. Informational: never used to drop a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryHeaders {
    /// Number of the retry: 1 to 3, or more with delayed events.
    pub number: u16,
    /// Slack's reason for the retry.
    pub reason: Option<HeaderToken>,
}

/// Address and deadline for a sync response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyncResponseWindow {
    /// NATS subject on which ingest listens.
    pub to: HeaderToken,
    /// Milliseconds since 1970 after which ingest no longer listens.
    pub by_ms: u64,
}

/// Idempotency key of a webhook: the connection, and the parts that Slack's retries share.
///
/// It is the `Nats-Msg-Id` (JetStream drops a copy within 30 min). Its hash is the key of a row in
/// `processed_keys`, which is kept longer.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DedupKey(String);

impl DedupKey {
    /// Hashes the parts that Slack's retries share. `key_space` separates the key spaces of
    /// different kinds.
    pub fn new(connection: ConnectionId, key_space: &'static str, parts: &[&[u8]]) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part);
        }
        let hash: [u8; 32] = hash.finalize().into();
        let hash = u128::from_be_bytes(*hash.first_chunk().expect("SHA-256 has 32 bytes"));
        Self(format!("{connection}:{key_space}:{hash:032x}"))
    }

    /// Returns the key for Slack's id of an event. Hashes an id with unexpected characters.
    pub fn event(connection: ConnectionId, event_id: &str) -> Self {
        let plain = (1..=64).contains(&event_id.len())
            && event_id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if plain {
            Self(format!("{connection}:event:{event_id}"))
        } else {
            Self::new(connection, "event-hash", &[event_id.as_bytes()])
        }
    }

    /// Wraps a key from a column or header.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// Returns the key as stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for DedupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DedupKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Failure to decode a message of the stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// Written by a newer release. The partition waits for a newer worker.
    #[error("envelope schema {0} is newer than {ENVELOPE_SCHEMA}, the newest this release reads")]
    Newer(u16),
    /// Foreign or damaged. Becomes a dead letter with this reason.
    #[error("undecodable envelope: {0}")]
    Undecodable(&'static str),
}

impl Envelope {
    /// Returns the subject that the envelope is published to.
    pub fn subject(&self) -> String {
        stream::subject(self.partition, self.connection)
    }

    /// Returns the headers. The payload is the unchanged body. Names are static, which saves a copy
    /// per webhook.
    pub fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static(DEDUP_KEY_HEADER), self.dedup_key.as_str());
        headers.insert(
            HeaderName::from_static(SCHEMA_HEADER),
            HeaderValue::from(u64::from(ENVELOPE_SCHEMA)),
        );
        headers.insert(HeaderName::from_static(KIND), self.kind.as_str());
        headers.insert(HeaderName::from_static(LANE), self.lane.to_string());
        headers
            .insert(HeaderName::from_static(RECEIVED_AT), HeaderValue::from(self.received_at_ms));
        headers.insert(HeaderName::from_static(CONTENT_TYPE), self.media.as_str());
        headers.insert(HeaderName::from_static(SIGNATURE), self.signature.as_str());
        headers.insert(HeaderName::from_static(TIMESTAMP), self.timestamp.as_str());
        if let Some(retry) = &self.retry {
            headers.insert(
                HeaderName::from_static(RETRY_NUM),
                HeaderValue::from(u64::from(retry.number)),
            );
            if let Some(reason) = &retry.reason {
                headers.insert(HeaderName::from_static(RETRY_REASON), reason.as_str());
            }
        }
        if let Some(traceparent) = &self.traceparent {
            headers.insert(HeaderName::from_static(TRACEPARENT), traceparent.as_str());
        }
        if let Some(reply) = &self.reply {
            headers.insert(HeaderName::from_static(REPLY_TO), reply.to.as_str());
            headers.insert(HeaderName::from_static(REPLY_BY), HeaderValue::from(reply.by_ms));
        }
        headers
    }

    /// Decodes a message of the stream.
    pub fn decode(
        subject: &str,
        headers: Option<&HeaderMap>,
        body: Bytes,
    ) -> Result<Self, DecodeError> {
        use DecodeError::{Newer, Undecodable};
        let headers = headers.ok_or(Undecodable("no headers"))?;
        let text = |name| headers.get(name).map(|value| value.as_str());
        let schema: u16 =
            parse_number(text(SCHEMA_HEADER)).ok_or(Undecodable("no schema version"))?;
        if schema > ENVELOPE_SCHEMA {
            return Err(Newer(schema));
        }
        let (partition, connection) =
            stream::parse_subject(subject).ok_or(Undecodable("unknown subject"))?;
        let token = |name| text(name).and_then(HeaderToken::new);
        Ok(Self {
            connection,
            partition,
            kind: parse(text(KIND)).ok_or(Undecodable("unknown kind"))?,
            lane: parse(text(LANE)).ok_or(Undecodable("no lane"))?,
            dedup_key: token(DEDUP_KEY_HEADER)
                .map(|token| DedupKey(token.as_str().to_owned()))
                .filter(|key| key.0.starts_with(&connection.to_string()))
                .ok_or(Undecodable("dedup key of another connection"))?,
            received_at_ms: parse_number(text(RECEIVED_AT))
                .ok_or(Undecodable("no receipt time"))?,
            media: text(CONTENT_TYPE)
                .and_then(MediaType::from_content_type)
                .ok_or(Undecodable("unknown media type"))?,
            signature: token(SIGNATURE).ok_or(Undecodable("no signature"))?,
            timestamp: token(TIMESTAMP).ok_or(Undecodable("no signature timestamp"))?,
            retry: parse_number(text(RETRY_NUM))
                .map(|number| RetryHeaders { number, reason: token(RETRY_REASON) }),
            traceparent: token(TRACEPARENT),
            reply: token(REPLY_TO)
                .zip(parse_number(text(REPLY_BY)))
                .map(|(to, by_ms)| SyncResponseWindow { to, by_ms }),
            body,
        })
    }
}

fn parse<T: std::str::FromStr>(text: Option<&str>) -> Option<T> {
    text?.parse().ok()
}

/// Parses decimal digits. `u64::from_str` would accept a leading `+`.
fn parse_number<T: std::str::FromStr>(text: Option<&str>) -> Option<T> {
    text.filter(|t| t.bytes().all(|b| b.is_ascii_digit()))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::Conversation;

    fn envelope() -> Envelope {
        let connection: ConnectionId = format!("{:032x}", 7).parse().expect("an id");
        Envelope {
            connection,
            partition: Partition::of(connection, Some("C1")),
            kind: WebhookKind::Event,
            lane: Lane::of(connection, Conversation::Thread("C1", "1.1")),
            dedup_key: DedupKey::event(connection, "Ev1"),
            received_at_ms: 1_700_000_000_123,
            media: MediaType::Json,
            signature: HeaderToken::new("v0=00").expect("a token"),
            timestamp: HeaderToken::new("1700000000").expect("a token"),
            retry: Some(RetryHeaders { number: 2, reason: HeaderToken::new("http_timeout") }),
            traceparent: HeaderToken::new(
                "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            ),
            reply: HeaderToken::new("slack.reply.i1.7")
                .map(|to| SyncResponseWindow { to, by_ms: 5 }),
            body: Bytes::from_static(b"{\"type\":\"event_callback\"}\xff"),
        }
    }

    #[test]
    fn round_trips_envelopes() {
        let sent = envelope();
        let back = Envelope::decode(&sent.subject(), Some(&sent.headers()), sent.body.clone());
        assert_eq!(format!("{:?}", back.expect("decodes")), format!("{sent:?}"));
    }

    #[test]
    fn separates_newer_from_undecodable() {
        let sent = envelope();
        let decode = |subject: &str, headers: &HeaderMap| {
            Envelope::decode(subject, Some(headers), sent.body.clone()).expect_err("wrong")
        };
        let mut newer = sent.headers();
        newer.insert(SCHEMA_HEADER, HeaderValue::from(ENVELOPE_SCHEMA + 1));
        newer.insert(KIND, "kind of a newer release");
        assert_eq!(decode(&sent.subject(), &newer), DecodeError::Newer(ENVELOPE_SCHEMA + 1));
        for (name, value) in [
            (SCHEMA_HEADER, "+1"),
            (KIND, "surprise"),
            (LANE, "7"),
            (RECEIVED_AT, "-1"),
            (CONTENT_TYPE, "text/html"),
            (DEDUP_KEY_HEADER, "another:event:Ev1"),
        ] {
            let mut headers = sent.headers();
            headers.insert(name, value);
            let error = decode(&sent.subject(), &headers);
            assert!(matches!(error, DecodeError::Undecodable(_)), "{name}: {error}");
        }
        for subject in
            ["slack.in.64.00", "slack.in.1", "other.in.1.2", &format!("{}.x", sent.subject())]
        {
            assert!(matches!(decode(subject, &sent.headers()), DecodeError::Undecodable(_)));
        }
    }

    #[test]
    fn separates_parts_of_dedup_keys() {
        let id = envelope().connection;
        let key = |parts: &[&[u8]]| DedupKey::new(id, "trigger", parts);
        assert_ne!(key(&[b"ab", b"c"]), key(&[b"a", b"bc"]));
        assert!(DedupKey::event(id, "Ev\r\n1").as_str().contains(":event-hash:"));
    }
}
