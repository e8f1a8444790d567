//! Signatures of requests that Tidegate sends to agents and apps: by Standard Webhooks, or in
//! Slack's scheme.

use crate::secrets::Secret;
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use std::time::{SystemTime, UNIX_EPOCH};

/// Returns `v1,<base64>` over `<id>.<timestamp>.<body>`. A secret `whsec_<base64>` is decoded
/// first; `None` if it is malformed.
pub fn standard_webhooks(secret: &Secret, id: &str, timestamp: u64, body: &[u8]) -> Option<String> {
    let key = secret.webhook_key()?;
    let tag = hmac(&key, &[id.as_bytes(), b".", timestamp.to_string().as_bytes(), b".", body]);
    Some(format!("v1,{}", BASE64.encode(tag)))
}

/// Returns `v0=<hex>` over `v0:<timestamp>:<body>`, as in
/// docs.slack.dev/authentication/verifying-requests-from-slack.
pub fn slack(secret: &Secret, timestamp: u64, body: &[u8]) -> String {
    let timestamp = timestamp.to_string();
    let tag = hmac(secret.expose().as_bytes(), &[b"v0:", timestamp.as_bytes(), b":", body]);
    tag.iter().fold("v0=".to_owned(), |hex, byte| hex + &format!("{byte:02x}"))
}

fn hmac(key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes a key of any length");
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().to_vec()
}

/// Returns the time for a signature, in seconds since 1970.
#[expect(clippy::disallowed_methods, reason = "time of a request")]
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |age| age.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> Secret {
        Secret::new(text.into()).expect("not empty")
    }

    /// Example of the Standard Webhooks specification.
    #[test]
    fn signs_as_standard_webhooks() {
        let key = secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw");
        let (id, body) = ("msg_p5jXN8AQM9LWM0D4loKWxJek", br#"{"test": 2432232314}"#);
        assert_eq!(
            standard_webhooks(&key, id, 1614265330, body).as_deref(),
            Some("v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=")
        );
        for malformed in ["whsec_", "whsec_no base64!", "whsec_c2hvcnQ="] {
            assert_eq!(standard_webhooks(&secret(malformed), id, 1614265330, body), None);
        }
    }

    /// Example of Slack's documentation, which ingest's tests use, too.
    #[test]
    fn signs_forwards_as_slack() {
        let body = b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&\
            channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&\
            command=%2Fwebhook-collect&text=&\
            response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F9\
            6rGlfmibIGlgcZRskXaIFfN&\
            trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";
        assert_eq!(
            slack(&secret("8f742231b10e8888abcd99yyyzzz85a5"), 1531420618, body),
            "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503"
        );
    }
}
