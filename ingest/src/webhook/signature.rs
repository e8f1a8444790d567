//! Verification of Slack's signatures: the security boundary.
//!
//! [`verify`] is the only constructor of [`Verified`]. It does no I/O and takes the time as an
//! argument. It follows docs.slack.dev (authentication/verifying-requests-from-slack): HMAC-SHA256
//! over `v0:<timestamp>:<body>`, at most 300 s old or ahead. The timestamp and the body are hashed
//! as received, not as parsed.

pub use crate::directory::SigningKey;

use bytes::Bytes;
use shared::domain::HeaderToken;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Maximum difference between Slack's timestamp and the local clock, in either direction.
pub const MAX_SKEW: Duration = Duration::from_secs(300);

/// Parts of a request that its signature covers, not verified yet.
#[derive(Debug)]
pub struct UnverifiedRequest<'a> {
    /// Value of `X-Slack-Signature`, if there is exactly one.
    pub signature: Option<&'a str>,
    /// Value of `X-Slack-Request-Timestamp`, if there is exactly one.
    pub timestamp: Option<&'a str>,
    /// Body as received.
    pub body: Bytes,
}

/// Body that Slack signed recently.
#[derive(Debug, Clone)]
pub struct Verified {
    body: Bytes,
    signature: HeaderToken,
    timestamp: HeaderToken,
    key_index: usize,
}

impl Verified {
    /// Returns the signed body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// Returns the signature header.
    pub fn signature(&self) -> &HeaderToken {
        &self.signature
    }

    /// Returns the timestamp header.
    pub fn timestamp(&self) -> &HeaderToken {
        &self.timestamp
    }

    /// Returns the index of the key that matched: 0 for the current one, 1 for the previous one.
    pub fn key_index(&self) -> usize {
        self.key_index
    }
}

/// Failure to verify a request. Contains neither the received nor the expected signature: in a log,
/// either could be used for a forgery for five minutes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SignatureError {
    /// No signature, more than one, or not `v0=` and 64 hex digits.
    NoSignature,
    /// No timestamp, more than one, or not a number.
    NoTimestamp,
    /// Timestamp outside [`MAX_SKEW`].
    Stale {
        /// Difference to the local clock.
        skew: Duration,
    },
    /// Signature that matches none of the keys.
    BadSignature,
}

/// Verifies age and signature of a request. `keys` are the valid keys, newest first.
pub fn verify<'k>(
    request: UnverifiedRequest<'_>,
    keys: impl IntoIterator<Item = &'k SigningKey>,
    now: SystemTime,
) -> Result<Verified, SignatureError> {
    let UnverifiedRequest { signature, timestamp, body } = request;
    let (signature, timestamp, tag) = check_headers(signature, timestamp, now)?;
    let key_index = keys
        .into_iter()
        .position(|key| key.matches(timestamp, &body, &tag))
        .ok_or(SignatureError::BadSignature)?;
    Ok(Verified {
        signature: HeaderToken::new(signature).ok_or(SignatureError::NoSignature)?,
        timestamp: HeaderToken::new(timestamp).ok_or(SignatureError::NoTimestamp)?,
        body,
        key_index,
    })
}

/// Checks the form of the signature and timestamp headers, and the age. Needs no body, so that a
/// request that can't be verified is rejected before its body is read. Returns both headers and the
/// signature's bytes.
pub fn check_headers<'h>(
    signature: Option<&'h str>,
    timestamp: Option<&'h str>,
    now: SystemTime,
) -> Result<(&'h str, &'h str, [u8; 32]), SignatureError> {
    let signature = signature.ok_or(SignatureError::NoSignature)?;
    let tag = decode_tag(signature).ok_or(SignatureError::NoSignature)?;
    let timestamp = timestamp.ok_or(SignatureError::NoTimestamp)?;
    check_age(timestamp, now)?;
    Ok((signature, timestamp, tag))
}

fn check_age(timestamp: &str, now: SystemTime) -> Result<(), SignatureError> {
    if timestamp.is_empty() || !timestamp.bytes().all(|b| b.is_ascii_digit()) {
        return Err(SignatureError::NoTimestamp); // `parse` alone would accept a leading `+`
    }
    let seconds: u64 = timestamp.parse().map_err(|_| SignatureError::NoTimestamp)?;
    // Whole seconds on both sides: local milliseconds must not change the result.
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let skew = Duration::from_secs(now.abs_diff(seconds));
    if skew <= MAX_SKEW { Ok(()) } else { Err(SignatureError::Stale { skew }) }
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
    use shared::secrets::Secret;

    /// Example from Slack's documentation.
    const SECRET: &str = "8f742231b10e8888abcd99yyyzzz85a5";
    const TIMESTAMP: &str = "1531420618";
    const SIGNATURE: &str = "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503";
    const BODY: &str = "token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow\
        &channel_id=G8PSS9T3V&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner\
        &command=%2Fwebhook-collect&text=\
        &response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J\
        %2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN\
        &trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c";

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }
    fn key(secret: &str) -> SigningKey {
        SigningKey::new(&Secret::new(secret.into()).expect("not empty"))
    }
    fn check(
        signature: &str,
        timestamp: &str,
        body: &str,
        now: u64,
    ) -> Result<usize, SignatureError> {
        let body = Bytes::copy_from_slice(body.as_bytes());
        let (signature, timestamp) = (Some(signature), Some(timestamp));
        let request = UnverifiedRequest { signature, timestamp, body };
        verify(request, [&key("another"), &key(SECRET)], at(now))
            .map(|verified| verified.key_index())
    }

    #[test]
    fn accepts_example_from_slack() {
        assert_eq!(check(SIGNATURE, TIMESTAMP, BODY, 1531420618), Ok(1));
    }

    #[test]
    fn accepts_skew_up_to_five_minutes() {
        for (now, fresh) in [(-301, false), (-300, true), (300, true), (301, false)] {
            let now = (1531420618 + now) as u64;
            assert_eq!(check(SIGNATURE, TIMESTAMP, BODY, now).is_ok(), fresh, "{now}");
            let late_in_second = at(now) + Duration::from_millis(999);
            assert_eq!(check_age(TIMESTAMP, late_in_second).is_ok(), fresh, "{now}");
        }
    }

    #[test]
    fn rejects_malformed_timestamp() {
        for malformed in
            ["", "+1531420618", "-1", "1531420618.0", " 1531420618", "99999999999999999999"]
        {
            assert_eq!(
                check(SIGNATURE, malformed, BODY, 1531420618),
                Err(SignatureError::NoTimestamp),
                "{malformed:?}"
            );
        }
        let far = "9999999999999999999";
        assert!(matches!(
            check(SIGNATURE, far, BODY, 0),
            Err(SignatureError::NoTimestamp | SignatureError::Stale { .. })
        ));
    }

    #[test]
    fn rejects_malformed_signature() {
        let upper = SIGNATURE.to_uppercase();
        for malformed in
            ["", "v0=", &SIGNATURE[..66], &SIGNATURE[3..], &upper, &SIGNATURE.replace("v0", "v1")]
        {
            assert_eq!(
                check(malformed, TIMESTAMP, BODY, 1531420618),
                Err(SignatureError::NoSignature),
                "{malformed:?}"
            );
        }
        let other = SIGNATURE.replace('a', "b");
        assert_eq!(check(&other, TIMESTAMP, BODY, 1531420618), Err(SignatureError::BadSignature));
    }

    #[test]
    fn rejects_missing_header() {
        let request =
            |signature, timestamp| UnverifiedRequest { signature, timestamp, body: Bytes::new() };
        let none: [&SigningKey; 0] = [];
        assert_eq!(
            verify(request(None, Some("1")), none, at(1)).err(),
            Some(SignatureError::NoSignature)
        );
        assert_eq!(
            verify(request(Some(SIGNATURE), None), none, at(1)).err(),
            Some(SignatureError::NoTimestamp)
        );
    }
}
