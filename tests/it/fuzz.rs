//! Nothing that comes from outside makes us panic.
//!
//! In: the kept corpus below `__fuzz__` (one webhook of every sort, from `fixtures/slack`), and bytes made up by
//! `bolero`. Out: nothing. Under `cargo test`, on the stable toolchain, each target runs its corpus and then for two seconds.

use bytes::Bytes;
use ingest::{
    classify,
    signature::{SigningKey, UnverifiedRequest, verify},
};
use shared::{
    codec::{envelope::Envelope, slack::Media},
    secrets::Secret,
};
use std::time::{Duration, UNIX_EPOCH};
use tests::slack::sign;

const FOR: Duration = Duration::from_secs(2);
const NOW: u64 = 1_700_000_000;

fn key() -> SigningKey {
    SigningKey::new(&Secret::new("secret".into()).expect("not empty"))
}

/// Two headers, a line each, and a body.
#[test]
fn no_headers_or_body_make_verify_panic() {
    bolero::check!().with_test_time(FOR).for_each(|input: &[u8]| {
        let mut lines = input.splitn(3, |&b| b == b'\n');
        let mut text = || lines.next().and_then(|line| std::str::from_utf8(line).ok());
        let (signature, timestamp) = (text(), text());
        let body = Bytes::copy_from_slice(lines.next().unwrap_or_default());
        let now = UNIX_EPOCH + Duration::from_secs(NOW);
        let forged = verify(UnverifiedRequest { signature, timestamp, body }, [&key()], now);
        assert!(forged.is_err(), "a signature was guessed");
    });
}

/// A letter for the media type (`f` is a form, all else JSON), and a body.
#[test]
fn no_body_makes_classify_panic() {
    bolero::check!().with_test_time(FOR).for_each(|input: &[u8]| {
        let Some((&letter, body)) = input.split_first() else { return };
        let media = if letter == b'f' { Media::Form } else { Media::Json };
        let timestamp = NOW.to_string();
        let signature = sign("secret", &timestamp, body);
        let request = UnverifiedRequest {
            signature: Some(&signature),
            timestamp: Some(&timestamp),
            body: Bytes::copy_from_slice(body),
        };
        let verified =
            verify(request, [&key()], UNIX_EPOCH + Duration::from_secs(NOW)).expect("well signed");
        let parts = classify::split(media, &verified);
        let inbound = parts.read();
        let connection = format!("{:032x}", 7).parse().expect("an id");
        let _ = (
            classify::challenge(&inbound),
            classify::routing(&inbound),
            classify::expects_sync_response(&inbound),
        );
        let placement = classify::place(connection, &inbound, &verified, || 1);
        assert!(placement.dedup_key.as_str().starts_with(&connection.to_string()));
    });
}

/// A subject, then header lines (`name: value`) to an empty line, then a body.
#[test]
fn no_message_makes_decoding_an_envelope_panic() {
    bolero::check!().with_test_time(FOR).for_each(|input: &[u8]| {
        let text = String::from_utf8_lossy(input);
        let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
        let mut lines = head.lines();
        let subject = lines.next().unwrap_or_default();
        let mut headers = async_nats::HeaderMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(": ")) {
            let (name, value) =
                (name.parse::<async_nats::HeaderName>(), value.parse::<async_nats::HeaderValue>());
            if let (Ok(name), Ok(value)) = (name, value) {
                headers.insert(name, value);
            }
        }
        let _ = Envelope::decode(subject, Some(&headers), Bytes::copy_from_slice(body.as_bytes()));
    });
}
