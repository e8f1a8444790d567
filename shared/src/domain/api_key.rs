//! API keys of the control API and their roles.
//!
//! A key is a bearer secret: the prefix `tgk_`, by which secret scanners recognize it, and 256
//! random bits. Only the hash of a key is stored. The beginning of the hash is the id of the key.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};

/// Prefix of every key.
const PREFIX: &str = "tgk_";
const BYTES: usize = 32;

/// Secret that a caller of the control API sends. Leaves this type only as a hash, or by
/// [`ApiKey::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey([u8; BYTES]);

/// Failure to parse an [`ApiKey`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an API key has the prefix tgk_ and 43 characters")]
pub struct ParseApiKeyError;

impl ApiKey {
    /// Returns a random key. Fails if the operating system provides no randomness.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Returns the key as a caller sends it. Callers show the key once and never log it.
    pub fn reveal(&self) -> String {
        format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(self.0))
    }

    /// Returns the hash that is stored and looked up. 256 random bits need no salt or slow hash.
    pub fn hash(&self) -> ApiKeyHash {
        let hash = Sha256::new().chain_update(b"tidegate.api-key\0").chain_update(self.0);
        ApiKeyHash(hash.finalize().into())
    }
}

impl FromStr for ApiKey {
    type Err = ParseApiKeyError;
    fn from_str(text: &str) -> Result<Self, ParseApiKeyError> {
        let digits = text.strip_prefix(PREFIX).ok_or(ParseApiKeyError)?;
        let bytes = URL_SAFE_NO_PAD.decode(digits).map_err(|_| ParseApiKeyError)?;
        bytes.try_into().map(Self).map_err(|_| ParseApiKeyError)
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// SHA-256 of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApiKeyHash([u8; 32]);

impl ApiKeyHash {
    /// Returns the bytes of the column.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the id of the key: the first 16 hex digits.
    pub fn id(&self) -> String {
        self.0.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Role of a key. Each includes the rights of those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ApiKeyRole {
    /// Reads everything but secrets and bodies.
    Viewer,
    /// Also changes what runs: link codes, pauses, deliveries, dead letters, replays.
    Operator,
    /// Also creates, changes and deletes organizations and agents.
    Owner,
}

impl ApiKeyRole {
    /// Returns the role as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            ApiKeyRole::Viewer => "viewer",
            ApiKeyRole::Operator => "operator",
            ApiKeyRole::Owner => "owner",
        }
    }
}

impl fmt::Display for ApiKeyRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for ApiKeyRole {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "viewer" => Ok(ApiKeyRole::Viewer),
            "operator" => Ok(ApiKeyRole::Operator),
            "owner" => Ok(ApiKeyRole::Owner),
            other => Err(format!("{other:?} is not a role; use viewer, operator or owner")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_revealed_key() {
        let key = ApiKey::random().expect("randomness");
        let shown = key.reveal();
        assert_eq!((shown.len(), shown.parse::<ApiKey>().as_ref()), (47, Ok(&key)));
        assert_ne!(key.hash(), ApiKey::random().expect("randomness").hash());
    }

    #[test]
    fn rejects_malformed_keys() {
        let shown = ApiKey::random().expect("randomness").reveal();
        let respelled = shown.replace("tgk_", "TGK_");
        for wrong in ["", "tgk_", &shown[1..], &shown[..46], &format!("{shown}A"), &respelled] {
            assert_eq!(wrong.parse::<ApiKey>(), Err(ParseApiKeyError), "{wrong:?}");
        }
    }

    #[test]
    fn prints_no_keys() {
        let key = ApiKey::random().expect("randomness");
        assert_eq!(format!("{key:?}"), "ApiKey(…)");
    }

    #[test]
    fn orders_roles() {
        assert!(ApiKeyRole::Viewer < ApiKeyRole::Operator);
        assert!(ApiKeyRole::Operator < ApiKeyRole::Owner);
    }
}
