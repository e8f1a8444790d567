//! Properties of signatures, envelopes and placement that hold for every webhook.
//!
//! Each property is checked for some thousands of inputs that `bolero` generates. A failure prints
//! the smallest input and its seed (`BOLERO_RANDOM_SEED`).

use bytes::Bytes;
use ingest::{
    classify,
    signature::{MAX_SKEW, SignatureError, SigningKey, UnverifiedRequest, Verified, verify},
};
use serde_json::json;
use shared::{
    domain::{ConnectionId, HeaderToken, MediaType},
    secrets::Secret,
    slack::BodyParts,
    stream::Envelope,
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tests::slack::sign;

const ITERATIONS: usize = 5_000;
/// Any second.
const NOW: u64 = 1_700_000_000;

fn key(secret: &str) -> SigningKey {
    SigningKey::new(&Secret::new(secret.to_owned()).expect("not empty"))
}

fn at(second: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(second)
}

fn check(
    signature: &str,
    timestamp: &str,
    body: &[u8],
    secret: &str,
    now: u64,
) -> Result<Verified, SignatureError> {
    let request = UnverifiedRequest {
        signature: Some(signature),
        timestamp: Some(timestamp),
        body: Bytes::copy_from_slice(body),
    };
    verify(request, [&key(secret)], at(now))
}

/// Returns the verified request of a body that Slack signed.
fn verify_signed(body: &[u8]) -> Verified {
    let now = NOW.to_string();
    check(&sign("secret", &now, body), &now, body, "secret", NOW).expect("well signed")
}

fn connection() -> ConnectionId {
    format!("{:032x}", 7).parse().expect("an id")
}

/// A flipped bit of body, signature or timestamp makes the signature invalid.
#[test]
fn rejects_any_flipped_bit() {
    bolero::check!().with_iterations(ITERATIONS).with_type::<(Vec<u8>, usize)>().for_each(
        |(body, bit)| {
            let timestamp = NOW.to_string();
            let signature = sign("secret", &timestamp, body);
            assert!(check(&signature, &timestamp, body, "secret", NOW).is_ok());
            let flipped = |bytes: &[u8]| {
                let (mut bytes, bit) = (bytes.to_vec(), bit % (bytes.len() * 8));
                bytes[bit / 8] ^= 1 << (bit % 8);
                bytes
            };
            if !body.is_empty() {
                assert!(check(&signature, &timestamp, &flipped(body), "secret", NOW).is_err());
            }
            // Bytes that are not UTF-8 do not become a header.
            if let Ok(signature) = String::from_utf8(flipped(signature.as_bytes())) {
                assert!(check(&signature, &timestamp, body, "secret", NOW).is_err(), "{signature}");
            }
            if let Ok(other) = String::from_utf8(flipped(timestamp.as_bytes())) {
                assert!(check(&signature, &other, body, "secret", NOW).is_err(), "{other}");
            }
        },
    );
}

/// A signature by any other secret is rejected as `BadSignature`.
#[test]
fn rejects_other_secrets() {
    bolero::check!().with_iterations(ITERATIONS).with_type::<(Vec<u8>, String)>().for_each(
        |(body, other)| {
            let timestamp = NOW.to_string();
            let signature = sign("secret", &timestamp, body);
            if !other.is_empty() && other.trim_end_matches('\0') != "secret" {
                let refused = check(&signature, &timestamp, body, other, NOW);
                assert_eq!(refused.err(), Some(SignatureError::BadSignature));
            }
        },
    );
}

/// A signature is valid for exactly `MAX_SKEW` before and after now.
#[test]
fn accepts_skew_of_five_minutes() {
    bolero::check!().with_iterations(ITERATIONS).with_type::<(u32, i16)>().for_each(
        |&(now, skew)| {
            let now = u64::from(now) + 100_000;
            let timestamp =
                now.checked_add_signed(i64::from(skew)).expect("below 2^33").to_string();
            let signature = sign("secret", &timestamp, b"body");
            let good = u64::from(skew.unsigned_abs()) <= MAX_SKEW.as_secs();
            assert_eq!(
                check(&signature, &timestamp, b"body", "secret", now).is_ok(),
                good,
                "{skew}"
            );
        },
    );
}

/// Returns the envelope that ingest makes of a body.
fn envelope(media: MediaType, body: &[u8], fresh: u128) -> Envelope {
    let verified = verify_signed(body);
    let parts: BodyParts<'_> = classify::split(media, &verified);
    let inbound = parts.read();
    let placement = classify::place_webhook(connection(), &inbound, &verified, || fresh);
    Envelope {
        connection: connection(),
        partition: placement.partition,
        kind: placement.kind,
        lane: placement.lane,
        dedup_key: placement.dedup_key,
        received_at_ms: NOW * 1000,
        media,
        signature: verified.signature().clone(),
        timestamp: verified.timestamp().clone(),
        retry: None,
        traceparent: None,
        reply: None,
        body: verified.body().clone(),
    }
}

fn assert_round_trip(sent: &Envelope) {
    let back = Envelope::decode(&sent.subject(), Some(&sent.headers()), sent.body.clone());
    assert_eq!(format!("{:?}", back.expect("it decodes")), format!("{sent:?}"));
}

/// Envelopes with any ids of Slack can be decoded again: a line break in a header would panic in
/// the client.
#[test]
fn round_trips_any_ids() {
    type Ids = (String, String, String, String);
    bolero::check!().with_iterations(ITERATIONS).with_type::<Ids>().for_each(|(id, channel, ts, user)| {
        let event = json!({
            "type": "event_callback", "event_id": id, "api_app_id": user, "team_id": channel,
            "event": { "type": "message", "channel": channel, "ts": ts, "thread_ts": id, "user": user },
        });
        let click = json!({
            "type": "block_actions", "trigger_id": id, "channel": { "id": channel }, "user": { "id": user },
            "actions": [{ "action_ts": ts }],
        });
        let form = |fields: &[(&str, &str)]| {
            form_urlencoded::Serializer::new(String::new()).extend_pairs(fields).finish().into_bytes()
        };
        let command =
            form(&[("command", "/x"), ("trigger_id", id), ("channel_id", channel), ("user_id", user), ("team_id", ts)]);
        assert_round_trip(&envelope(MediaType::Json, event.to_string().as_bytes(), 1));
        assert_round_trip(&envelope(MediaType::Form, &form(&[("payload", &click.to_string())]), 1));
        assert_round_trip(&envelope(MediaType::Form, &command, 1));
    });
}

/// Equal bodies have the same partition, lane and dedup key. All webhooks of a conversation have
/// one partition and lane.
#[test]
fn places_webhooks_consistently() {
    bolero::check!().with_iterations(ITERATIONS).with_type::<(String, String, u8)>().for_each(
        |(channel, ts, n)| {
            let event = |text: &str| {
                let inner =
                    json!({ "type": "message", "channel": channel, "ts": ts, "text": text });
                let body = json!({ "type": "event_callback", "event_id": text, "event": inner });
                envelope(MediaType::Json, body.to_string().as_bytes(), u128::from(*n))
            };
            let (one, again, other) = (event("one"), event("one"), event("other"));
            assert_eq!(
                (one.partition, one.lane, &one.dedup_key),
                (again.partition, again.lane, &again.dedup_key)
            );
            assert_eq!((one.partition, one.lane), (other.partition, other.lane));
            assert_ne!(one.dedup_key, other.dedup_key);
        },
    );
}

/// Two equal requests for options have different dedup keys, because each waits for an answer of
/// its own.
#[test]
fn separates_options_requests() {
    let body = form_urlencoded::Serializer::new(String::new())
        .append_pair("payload", r#"{"type":"block_suggestion","view":{"id":"V1"}}"#)
        .finish();
    let (one, two) = (
        envelope(MediaType::Form, body.as_bytes(), 1),
        envelope(MediaType::Form, body.as_bytes(), 2),
    );
    assert_eq!((one.partition, one.lane), (two.partition, two.lane));
    assert_ne!(one.dedup_key, two.dedup_key);
}

/// Every `HeaderToken` is a valid value of a header of NATS.
#[test]
fn allows_safe_header_tokens_only() {
    bolero::check!().with_iterations(ITERATIONS).with_type::<String>().for_each(|text| {
        if let Some(word) = HeaderToken::new(text.clone()) {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("x", word.as_str());
        }
    });
}
