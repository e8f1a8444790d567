//! Sessions of the console: the secret in a browser's cookie, its hash and its form token.
//!
//! Only the hash is stored. The form token protects against CSRF. It is derived from the secret, so
//! that it needs no column and is invalid in other sessions.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};

const BYTES: usize = 32;

/// Secret of a session: 256 random bits. Leaves this type as a hash, as the form token, or by
/// [`ConsoleSession::reveal`] to the browser.
#[derive(Clone, PartialEq, Eq)]
pub struct ConsoleSession([u8; BYTES]);

/// Failure to parse a [`ConsoleSession`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed session")]
pub struct ParseConsoleSessionError;

impl ConsoleSession {
    /// Returns a random session. Fails if the operating system provides no randomness.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; BYTES];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }

    /// Returns the text of the cookie. Callers never log it.
    pub fn reveal(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Returns the hash that is stored and looked up.
    pub fn hash(&self) -> ConsoleSessionHash {
        ConsoleSessionHash(self.derive(b"tidegate.console-session\0"))
    }

    /// Returns the token that forms of this session contain.
    pub fn form_token(&self) -> String {
        URL_SAFE_NO_PAD.encode(self.derive(b"tidegate.console-form\0"))
    }

    /// Returns whether a form's token is that of this session. Compares hashes, so that timing
    /// reveals nothing about the token.
    pub fn accepts_form(&self, token: &str) -> bool {
        Sha256::digest(token.as_bytes()) == Sha256::digest(self.form_token().as_bytes())
    }

    fn derive(&self, label: &[u8]) -> [u8; 32] {
        Sha256::new().chain_update(label).chain_update(self.0).finalize().into()
    }
}

impl FromStr for ConsoleSession {
    type Err = ParseConsoleSessionError;
    fn from_str(text: &str) -> Result<Self, ParseConsoleSessionError> {
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| ParseConsoleSessionError)?;
        bytes.try_into().map(Self).map_err(|_| ParseConsoleSessionError)
    }
}

impl fmt::Debug for ConsoleSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConsoleSession(…)")
    }
}

/// SHA-256 of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConsoleSessionHash([u8; 32]);

impl ConsoleSessionHash {
    /// Returns the bytes of the column.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_revealed_session() {
        let session = ConsoleSession::random().expect("randomness");
        assert_eq!(session.reveal().parse(), Ok(session.clone()));
        assert_eq!(format!("{session:?}"), "ConsoleSession(…)");
        for wrong in ["", "x", &session.reveal()[1..]] {
            assert!(wrong.parse::<ConsoleSession>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn accepts_own_forms_only() {
        let [own, other] = [(); 2].map(|()| ConsoleSession::random().expect("randomness"));
        assert!(own.accepts_form(&own.form_token()));
        for wrong in [other.form_token(), own.reveal(), String::new()] {
            assert!(!own.accepts_form(&wrong));
        }
        assert_ne!(own.form_token(), URL_SAFE_NO_PAD.encode(own.hash().as_bytes()));
    }
}
