//! What must hold for every webhook, and not only for those we thought of.
//!
//! In: bytes, keys, times and texts made up by `bolero`. Out: nothing, or the least input that breaks a promise, with
//! the seed (`BOLERO_RANDOM_SEED`) that finds it again. Each property is tried for some thousands of inputs.

use bytes::Bytes;
use ingest::{
    classify,
    signature::{MAX_SKEW, SignatureError, SigningKey, UnverifiedRequest, Verified, verify},
};
use serde_json::json;
use shared::{
    codec::{
        envelope::{Envelope, Word},
        slack::{Media, Parts},
    },
    secrets::Secret,
    types::ConnectionId,
};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tests::slack::sign;

const ITERATIONS: usize = 5_000;
/// A second of no importance.
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

/// A body that Slack signed, whatever it is.
fn verified(body: &[u8]) -> Verified {
    let now = NOW.to_string();
    check(&sign("secret", &now, body), &now, body, "secret", NOW).expect("well signed")
}

fn connection() -> ConnectionId {
    format!("{:032x}", 7).parse().expect("an id")
}

#[test]
fn any_flipped_bit_of_body_signature_or_timestamp_is_refused() {
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
            // What is no text any more does not even become a header.
            if let Ok(signature) = String::from_utf8(flipped(signature.as_bytes())) {
                assert!(check(&signature, &timestamp, body, "secret", NOW).is_err(), "{signature}");
            }
            if let Ok(other) = String::from_utf8(flipped(timestamp.as_bytes())) {
                assert!(check(&signature, &other, body, "secret", NOW).is_err(), "{other}");
            }
        },
    );
}

#[test]
fn another_secret_is_refused() {
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

#[test]
fn a_webhook_is_good_for_five_minutes_around_any_moment() {
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

/// An envelope as ingest makes it of this body.
fn envelope(media: Media, body: &[u8], fresh: u128) -> Envelope {
    let verified = verified(body);
    let parts: Parts<'_> = classify::split(media, &verified);
    let inbound = parts.read();
    let placement = classify::place(connection(), &inbound, &verified, || fresh);
    Envelope {
        connection: connection(),
        partition: placement.partition,
        kind: placement.kind,
        lane: placement.lane,
        dedupe: placement.dedup_key,
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

fn comes_back(sent: &Envelope) {
    let back = Envelope::decode(&sent.subject(), Some(&sent.headers()), sent.body.clone());
    assert_eq!(format!("{:?}", back.expect("it decodes")), format!("{sent:?}"));
}

/// A value with a line break in a header would panic in the client: whatever Slack's ids are, they must not get there.
#[test]
fn whatever_its_ids_are_a_webhook_becomes_an_envelope_that_comes_back() {
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
        comes_back(&envelope(Media::Json, event.to_string().as_bytes(), 1));
        comes_back(&envelope(Media::Form, &form(&[("payload", &click.to_string())]), 1));
        comes_back(&envelope(Media::Form, &command, 1));
    });
}

#[test]
fn the_same_bytes_have_the_same_place_and_a_conversation_has_one_partition() {
    bolero::check!().with_iterations(ITERATIONS).with_type::<(String, String, u8)>().for_each(
        |(channel, ts, n)| {
            let event = |text: &str| {
                let inner =
                    json!({ "type": "message", "channel": channel, "ts": ts, "text": text });
                let body = json!({ "type": "event_callback", "event_id": text, "event": inner });
                envelope(Media::Json, body.to_string().as_bytes(), u128::from(*n))
            };
            let (one, again, other) = (event("one"), event("one"), event("other"));
            assert_eq!(
                (one.partition, one.lane, &one.dedupe),
                (again.partition, again.lane, &again.dedupe)
            );
            assert_eq!((one.partition, one.lane), (other.partition, other.lane));
            assert_ne!(one.dedupe, other.dedupe);
        },
    );
}

#[test]
fn no_two_askings_for_options_are_one() {
    let body = form_urlencoded::Serializer::new(String::new())
        .append_pair("payload", r#"{"type":"block_suggestion","view":{"id":"V1"}}"#)
        .finish();
    let (one, two) =
        (envelope(Media::Form, body.as_bytes(), 1), envelope(Media::Form, body.as_bytes(), 2));
    assert_eq!((one.partition, one.lane), (two.partition, two.lane));
    assert_ne!(one.dedupe, two.dedupe);
}

#[test]
fn a_word_is_safe_in_a_header_or_it_is_none() {
    bolero::check!().with_iterations(ITERATIONS).with_type::<String>().for_each(|text| {
        if let Some(word) = Word::new(text.clone()) {
            let mut headers = async_nats::HeaderMap::new();
            headers.insert("x", word.as_str());
        }
    });
}
