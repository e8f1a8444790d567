//! Forged webhooks, which ingest must reject.
//!
//! A forgery is a webhook of a connection with an invalid signature or ambiguous headers. All
//! forgeries get the same response.

use super::{Answer, Slack, sign, unix_now, webhook::Webhook};

/// Maximum difference between the time of a signature and the clock of ingest, in seconds, in both
/// directions.
pub const GOOD_FOR: u64 = 300;

const SIGNATURE: &str = "x-slack-signature";
const TIMESTAMP: &str = "x-slack-request-timestamp";

/// A webhook with headers that Slack did not send.
#[derive(Debug, Clone)]
pub struct Forgery {
    /// Description.
    pub what: &'static str,
    webhook: Webhook,
    headers: Vec<(&'static str, String)>,
}

impl Forgery {
    fn new(what: &'static str, webhook: &Webhook, signature: &str, second: u64) -> Self {
        let headers = vec![(SIGNATURE, signature.to_owned()), (TIMESTAMP, second.to_string())];
        Self { what, webhook: webhook.clone(), headers }
    }

    /// Sends the forgery.
    pub async fn send(&self, slack: &Slack, url: &str) -> anyhow::Result<Answer> {
        let headers: Vec<_> =
            self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        slack.send_with(url, &self.webhook, &headers).await
    }
}

/// Returns well-formed signatures of another connection, another body or another time. `another` is
/// the secret of another connection.
pub fn signatures(webhook: &Webhook, secret: &str, another: &str) -> Vec<Forgery> {
    let now = unix_now();
    let signed = |secret: &str, second: u64| sign(secret, &second.to_string(), &webhook.body);
    let signed_at = |what, second| Forgery::new(what, webhook, &signed(secret, second), second);
    let good = signed(secret, now);
    let mut changed = webhook.clone();
    changed.body[10] ^= 1;
    vec![
        Forgery::new("another connection's secret", webhook, &signed(another, now), now),
        Forgery::new("an unknown secret", webhook, &signed("made up", now), now),
        Forgery::new("the secret in capitals", webhook, &signed(&secret.to_uppercase(), now), now),
        Forgery::new("a byte changed after signing", &changed, &good, now),
        Forgery::new("another second", webhook, &good, now + 1),
        signed_at("too old", now - GOOD_FOR - 1),
        // 3 s instead of 1 s, because time passes until the request arrives.
        signed_at("from the future", now + GOOD_FOR + 3),
    ]
}

/// Returns ambiguous headers.
pub fn headers(webhook: &Webhook, secret: &str) -> Vec<Forgery> {
    let now = unix_now();
    let good = sign(secret, &now.to_string(), &webhook.body);
    let written = |what, signature: &str| Forgery::new(what, webhook, signature, now);
    let with = |what, headers: &[(&'static str, &str)]| Forgery {
        headers: headers.iter().map(|(name, value)| (*name, (*value).to_owned())).collect(),
        ..written(what, "")
    };
    let stamp = now.to_string();
    vec![
        written("no hex", &good.replace("v0=", "v0=zz")),
        written("hex of another length", &good[..good.len() - 2]),
        written("no version", good.trim_start_matches("v0=")),
        written("empty", ""),
        with("no signature and no timestamp", &[]),
        with("no timestamp", &[(SIGNATURE, &good)]),
        with("a timestamp with a sign", &[(SIGNATURE, &good), (TIMESTAMP, &format!("+{stamp}"))]),
        with("two signatures", &[(SIGNATURE, &good), (SIGNATURE, &good), (TIMESTAMP, &stamp)]),
        with("two timestamps", &[(SIGNATURE, &good), (TIMESTAMP, &stamp), (TIMESTAMP, &stamp)]),
    ]
}
