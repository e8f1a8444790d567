//! Signing secrets prepared for verification.

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use shared::secrets::Secret;
use std::fmt;

/// Signing secret of a Slack app as the state of HMAC-SHA256, computed once and not per webhook.
#[derive(Clone)]
pub struct SigningKey(Hmac<Sha256>);

impl SigningKey {
    /// Creates a key from the text of a secret. Slack uses the text itself, not decoded from hex.
    pub fn new(secret: &Secret) -> Self {
        Self(
            Hmac::new_from_slice(secret.expose().as_bytes())
                .expect("HMAC accepts a key of any length"),
        )
    }

    /// Returns whether `tag` is the signature of `v0:<timestamp>:<body>`, in constant time.
    pub fn matches(&self, timestamp: &str, body: &[u8], tag: &[u8; 32]) -> bool {
        let mut mac = self.0.clone();
        for part in [b"v0:", timestamp.as_bytes(), b":", body] {
            mac.update(part);
        }
        mac.verify_slice(tag).is_ok()
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(..)")
    }
}
