//! Fuzz targets: no input from outside makes a process panic.
//!
//! Inputs are the corpus below `__fuzz__`, every webhook that Slack documents, and bytes that
//! `bolero` generates. Under `cargo test`, on the stable toolchain, each target runs for at least
//! 20,000 inputs and five seconds; `BOLERO_RANDOM_TEST_TIME_MS` sets a longer time. Parsers that
//! are private to `worker` have their targets beside them, in files called `fuzz.rs`.

use bytes::Bytes;
use ingest::{
    classify,
    signature::{SigningKey, UnverifiedRequest, verify},
};
use shared::{
    domain::MediaType,
    secrets::Secret,
    slack::{first_input_block, parse_joined_user, parse_renamed_channel, parse_revoked_bots},
    stream::Envelope,
};
use std::time::{Duration, UNIX_EPOCH};
use tests::slack::sign;

const INPUTS: usize = 20_000;
const TIME: Duration = Duration::from_secs(5);
const NOW: u64 = 1_700_000_000;

fn key() -> SigningKey {
    SigningKey::new(&Secret::new("secret".into()).expect("not empty"))
}

/// Input: two headers, a line each, and a body.
fn verifies(input: &[u8]) {
    let mut lines = input.splitn(3, |&b| b == b'\n');
    let mut text = || lines.next().and_then(|line| std::str::from_utf8(line).ok());
    let (signature, timestamp) = (text(), text());
    let body = Bytes::copy_from_slice(lines.next().unwrap_or_default());
    let now = UNIX_EPOCH + Duration::from_secs(NOW);
    let forged = verify(UnverifiedRequest { signature, timestamp, body }, [&key()], now);
    assert!(forged.is_err(), "a signature was guessed");
}

/// Signature checks reject any bytes without a panic. Input: two headers, a line each, and a body.
#[test]
fn verifies_any_headers_and_body() {
    bolero::check!().with_iterations(INPUTS).for_each(verifies);
    bolero::check!().with_test_time(TIME).for_each(verifies);
}

/// Input: a letter for the media type (`f` is a form, all else JSON), and a body.
fn classifies(input: &[u8]) {
    let Some((&letter, body)) = input.split_first() else { return };
    let media = if letter == b'f' { MediaType::Form } else { MediaType::Json };
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
        (inbound.app(), inbound.installations()),
        classify::sync_response_kind(&inbound),
        first_input_block(&parts),
        parse_revoked_bots(body),
        parse_renamed_channel(body),
        parse_joined_user(body),
    );
    let placement = classify::place_webhook(connection, &inbound, &verified, || 1);
    assert!(placement.dedup_key.as_str().starts_with(&connection.to_string()));
}

/// Classification takes any body without a panic. Input: a letter for the media type (`f` is a
/// form, others JSON), and a body.
#[test]
fn classifies_any_body() {
    // The whole webhooks, and each with a byte cut from its middle.
    for webhook in tests::fixtures::all().into_iter().map(|fixture| fixture.webhook) {
        let letter = if webhook.content_type.ends_with("json") { b'j' } else { b'f' };
        let mut input = [&[letter], webhook.body.as_slice()].concat();
        classifies(&input);
        input.remove(input.len() / 2);
        classifies(&input);
    }
    bolero::check!().with_iterations(INPUTS).for_each(classifies);
    bolero::check!().with_test_time(TIME).for_each(classifies);
}

/// Input: a subject, then header lines (`name: value`) to an empty line, then a body.
fn decodes(input: &[u8]) {
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
}

/// Decoding takes any message of the stream without a panic. Input: a subject, header lines (`name:
/// value`) up to an empty line, and a body.
#[test]
fn decodes_any_message() {
    bolero::check!().with_iterations(INPUTS).for_each(decodes);
    bolero::check!().with_test_time(TIME).for_each(decodes);
}
