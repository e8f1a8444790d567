//! The security boundary: a body Slack signed, or a refusal.
//!
//! In: two headers, the raw bytes, the connection's secrets, and the time. Out: [`Verified`], which has no
//! other constructor. No I/O, and no clock: `now` is an argument. Follows docs.slack.dev
//! (authentication/verifying-requests-from-slack): HMAC-SHA256 over `v0:<timestamp>:<body>`, at most 300 s off,
//! either way. What is hashed is the timestamp's text and the body's bytes as they came, never a reading of them.

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use shared::{codec::envelope::Word, secrets::Secret};
use std::{fmt, time::Duration, time::SystemTime, time::UNIX_EPOCH};

/// How far Slack's time may be from ours, either way.
pub const SKEW_MAX: Duration = Duration::from_secs(300);

/// A signing secret, ready to check with: the key is worked into the hash once, not for every webhook.
#[derive(Clone)]
pub struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    /// From the secret's text, which Slack uses as it is (it is not decoded from hex).
    pub fn new(secret: &Secret) -> Self {
        Self(
            Hmac::new_from_slice(secret.expose().as_bytes())
                .expect("HMAC takes a key of any length"),
        )
    }

    fn signed(&self, timestamp: &str, body: &[u8], signature: &[u8; 32]) -> bool {
        let mut mac = self.0.clone();
        for part in [b"v0:", timestamp.as_bytes(), b":", body] {
            mac.update(part);
        }
        mac.verify_slice(signature).is_ok() // constant time
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(…)")
    }
}

/// A webhook as it came: nobody has looked whether Slack sent it.
#[derive(Debug)]
pub struct Raw<'a> {
    /// `X-Slack-Signature`, if there is exactly one.
    pub signature: Option<&'a str>,
    /// `X-Slack-Request-Timestamp`, if there is exactly one.
    pub timestamp: Option<&'a str>,
    /// The body.
    pub body: Bytes,
}

/// A body that Slack signed, lately. Holding one is the proof.
#[derive(Debug, Clone)]
pub struct Verified {
    body: Bytes,
    signature: Word,
    timestamp: Word,
    key: usize,
}

impl Verified {
    /// The bytes that were signed.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The signature, for the envelope.
    pub fn signature(&self) -> &Word {
        &self.signature
    }

    /// When Slack signed, for the envelope.
    pub fn timestamp(&self) -> &Word {
        &self.timestamp
    }

    /// Which of the keys matched: 0 for the present one, 1 for the one being rotated out.
    pub fn key(&self) -> usize {
        self.key
    }
}

/// Why a webhook is not Slack's. Holds neither the signature received nor the one expected: whoever read
/// that in a log would hold a forgery good for five minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rejected {
    /// No signature, two of them, or not `v0=` and 64 hex digits.
    NoSignature,
    /// No timestamp, two of them, or not a number.
    NoTimestamp,
    /// Signed too long ago, or in the future.
    Stale {
        /// How far off.
        skew: Duration,
    },
    /// No live secret of the connection made this signature.
    BadSignature,
}

/// Checks age and signature. `keys` are the connection's live secrets.
pub fn verify<'k>(
    raw: Raw<'_>,
    keys: impl IntoIterator<Item = &'k SigningKey>,
    now: SystemTime,
) -> Result<Verified, Rejected> {
    let signature = raw.signature.ok_or(Rejected::NoSignature)?;
    let tag = decode_tag(signature).ok_or(Rejected::NoSignature)?;
    let timestamp = raw.timestamp.ok_or(Rejected::NoTimestamp)?;
    check_age(timestamp, now)?;
    let key = keys
        .into_iter()
        .position(|key| key.signed(timestamp, &raw.body, &tag))
        .ok_or(Rejected::BadSignature)?;
    Ok(Verified {
        signature: Word::new(signature).ok_or(Rejected::NoSignature)?,
        timestamp: Word::new(timestamp).ok_or(Rejected::NoTimestamp)?,
        body: raw.body,
        key,
    })
}

fn check_age(timestamp: &str, now: SystemTime) -> Result<(), Rejected> {
    if timestamp.is_empty() || !timestamp.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Rejected::NoTimestamp); // `parse` alone would take a leading `+`
    }
    let seconds: u64 = timestamp.parse().map_err(|_| Rejected::NoTimestamp)?;
    let signed =
        UNIX_EPOCH.checked_add(Duration::from_secs(seconds)).ok_or(Rejected::NoTimestamp)?;
    let skew = now.duration_since(signed).unwrap_or_else(|ahead| ahead.duration());
    // Slack counts whole seconds; so do we, or 300 s would be refused for its milliseconds.
    if skew.as_secs() <= SKEW_MAX.as_secs() { Ok(()) } else { Err(Rejected::Stale { skew }) }
}

fn decode_tag(signature: &str) -> Option<[u8; 32]> {
    let hex = signature.strip_prefix("v0=")?.as_bytes();
    let digit = |b: u8| match b {
        b'0'..=b'9' => Some(b - b'0'),
        b'a'..=b'f' => Some(b - b'a' + 10),
        _ => None, // Slack writes lower case; one spelling is enough
    };
    if hex.len() != 64 {
        return None;
    }
    let mut tag = [0; 32];
    for (byte, pair) in tag.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example that Slack's documentation prints, and the second in which it was signed.
    const SECRET: &str = "8f742231b10e8888abcd99yyyzzz85a5";
    const TIMESTAMP: &str = "1531420618";
    const SIGNATURE: &str = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503";
    const BODY: &str = "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow\
        &channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner\
        &command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J\
        %2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }
    fn key(secret: &str) -> SigningKey {
        SigningKey::new(&Secret::new(secret.into()).expect("not empty"))
    }
    fn check(signature: &str, timestamp: &str, body: &str, now: u64) -> Result<usize, Rejected> {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let raw = Raw { signature: Some(signature), timestamp: Some(timestamp), body };
        verify(raw, [&key("another"), &key(SECRET)], at(now)).map(|verified| verified.key())
    }

    #[test]
    fn slacks_own_example_verifies_and_says_which_secret_matched() {
        assert_eq!(check(SIGNATURE, TIMESTAMP, BODY, 1531420618), Ok(1));
    }

    #[test]
    fn a_webhook_is_good_for_five_minutes_either_way() {
        for (now, fresh) in [(-301, false), (-300, true), (300, true), (301, false)] {
            let now = (1531420618 + now) as u64;
            assert_eq!(check(SIGNATURE, TIMESTAMP, BODY, now).is_ok(), fresh, "{now}");
        }
    }

    #[test]
    fn a_timestamp_is_digits() {
        for odd in ["", "+1531420618", "-1", "1531420618.0", " 1531420618", "99999999999999999999"]
        {
            assert_eq!(
                check(SIGNATURE, odd, BODY, 1531420618),
                Err(Rejected::NoTimestamp),
                "{odd:?}"
            );
        }
        let far = "9999999999999999999";
        assert!(matches!(
            check(SIGNATURE, far, BODY, 0),
            Err(Rejected::NoTimestamp | Rejected::Stale { .. })
        ));
    }

    #[test]
    fn a_signature_is_v0_and_64_lower_case_hex_digits() {
        let upper = SIGNATURE.to_uppercase();
        for odd in
            ["", "v0=", &SIGNATURE[..66], &SIGNATURE[3..], &upper, &SIGNATURE.replace("v0", "v1")]
        {
            assert_eq!(
                check(odd, TIMESTAMP, BODY, 1531420618),
                Err(Rejected::NoSignature),
                "{odd:?}"
            );
        }
        let other = SIGNATURE.replace('a', "b");
        assert_eq!(check(&other, TIMESTAMP, BODY, 1531420618), Err(Rejected::BadSignature));
    }

    #[test]
    fn a_missing_header_is_a_refusal() {
        let raw = |signature, timestamp| Raw { signature, timestamp, body: Bytes::new() };
        let none: [&SigningKey; 0] = [];
        assert_eq!(verify(raw(None, Some("1")), none, at(1)).err(), Some(Rejected::NoSignature));
        assert_eq!(
            verify(raw(Some(SIGNATURE), None), none, at(1)).err(),
            Some(Rejected::NoTimestamp)
        );
    }
}
