//! Requests that Slack never sends: with an ambiguous length, too large, with other media types, or
//! signed but unparsable.
//!
//! Requests are bytes, with the expected status of the response. Signed but unparsable webhooks are
//! accepted, because Slack signed them, and become dead letters.

use super::{
    Answer, Slack,
    socket::{Socket, head},
    webhook::Webhook,
};
use shared::stream::{BODY_BYTES_MAX, DedupKey};
use std::time::Duration;

/// A malformed request and its expected status.
#[derive(Debug, Clone)]
pub struct Malformed {
    /// Description.
    pub what: String,
    /// Bytes of the request.
    pub bytes: Vec<u8>,
    /// Expected status.
    pub status: u16,
}

impl Malformed {
    /// Sends the request on a new connection.
    pub async fn send(&self, url: &str, within: Duration) -> anyhow::Result<Answer> {
        let mut socket = Socket::open(url).await?;
        socket.send(&self.bytes).await?;
        socket.answer(within).await
    }
}

/// Returns requests with an ambiguous or missing body length.
pub fn two_lengths(url: &str, secret: &str, webhook: &Webhook) -> anyhow::Result<Vec<Malformed>> {
    let n = webhook.body.len();
    let length = format!("content-length: {n}");
    let framings: [&[&str]; 13] = [
        &["transfer-encoding: chunked"],
        &["transfer-encoding: chunked", &length],
        &[&length, "transfer-encoding: chunked"],
        &["transfer-encoding: gzip, chunked"],
        &["transfer-encoding: chunked", "transfer-encoding: chunked"],
        &["transfer-encoding: identity", &length],
        &["transfer-encoding: chunked, identity", &length],
        &["transfer-encoding : chunked", &length],
        &[&length, &format!("content-length: {}", n - 1)],
        &[&format!("content-length: {n}, {n}")],
        &[&format!("content-length: +{n}")],
        &["content-length: -1"],
        &["content-length: 99999999999999999999"],
    ];
    let malformed = |framing: &[&str]| {
        let mut bytes = head(url, secret, webhook, framing)?;
        if framing.iter().any(|line| line.starts_with("transfer-encoding")) {
            bytes.extend_from_slice(format!("{n:x}\r\n").as_bytes());
            bytes.extend_from_slice(&webhook.body);
            bytes.extend_from_slice(b"\r\n0\r\n\r\n");
        } else {
            bytes.extend_from_slice(&webhook.body);
        }
        Ok(Malformed { what: framing.join(", "), bytes, status: 400 })
    };
    framings.into_iter().map(malformed).collect()
}

/// Returns heads of requests whose length exceeds the size limit. They are rejected before a body.
pub fn too_large(url: &str, secret: &str, webhook: &Webhook) -> anyhow::Result<Vec<Malformed>> {
    let length = |bytes: usize| format!("content-length: {bytes}");
    let (over, ten) = (length(BODY_BYTES_MAX + 1), length(10 * BODY_BYTES_MAX));
    let framings: [&[&str]; 3] = [&[&over], &[&over, "expect: 100-continue"], &[&ten]];
    let malformed = |framing: &[&str]| {
        let bytes = head(url, secret, webhook, framing)?;
        Ok(Malformed { what: framing.join(", "), bytes, status: 413 })
    };
    framings.into_iter().map(malformed).collect()
}

/// Returns requests whose bytes differ from the signed bytes, or with two media types.
pub fn other_bytes(url: &str, secret: &str, webhook: &Webhook) -> anyhow::Result<Vec<Malformed>> {
    let length = |bytes: &[u8]| format!("content-length: {}", bytes.len());
    let request = |what: &str, lines: &[&str], body: &[u8], status| {
        let bytes = [&head(url, secret, webhook, lines)?, body].concat();
        anyhow::Ok(Malformed { what: what.into(), bytes, status })
    };
    let (whole, gzipped) = (&webhook.body[..], gzipped(&webhook.body));
    let less = &whole[..whole.len() - 1];
    let another = "content-type: text/html";
    Ok(vec![
        request("the last byte is missing", &[&length(less)], less, 401)?,
        request(
            "a body that a proxy compressed",
            &["content-encoding: gzip", &length(&gzipped)],
            &gzipped,
            401,
        )?,
        request("two media types", &[another, &length(whole)], whole, 415)?,
    ])
}

/// Returns signed webhooks that cannot be parsed. They are accepted.
pub fn not_understood(slack: &Slack) -> Vec<Webhook> {
    let number = slack.unique();
    let deep = "[".repeat(100_000) + &number.to_string() + &"]".repeat(100_000);
    // Between fields, because invalid UTF-8 inside a string would be replaced.
    let not_utf8 = format!(r#"{{"type":"event_callback","event_id":"Ev{number}","#).into_bytes();
    let not_utf8 = [&not_utf8[..], b"\xff\xfe}"].concat();
    let bodies = [
        ("deep JSON", deep.into_bytes()),
        ("no UTF-8", not_utf8),
        ("a body that the sender compressed", gzipped(number.to_string().as_bytes())),
        ("a truncated body", format!(r#"{{"event_id":"Ev{number}","event":"#).into_bytes()),
    ];
    let webhook = |(what, body): (&str, Vec<u8>)| Webhook {
        what: what.into(),
        content_type: "application/json",
        body,
        dedup_key: DedupKey::from_stored(String::new()), // depends on the connection
        response_url: String::new(),
    };
    bodies.map(webhook).into()
}

/// Returns bytes that begin with a gzip header. They are not valid gzip.
fn gzipped(body: &[u8]) -> Vec<u8> {
    [b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff", body].concat()
}
