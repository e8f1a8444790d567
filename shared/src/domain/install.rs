//! Secrets of an installation by OAuth: the link that begins it, its state, and the browser.
//!
//! Each is random and leaves its type as a hash, or by `reveal` to the browser. Only hashes are
//! stored.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};

/// Failure to parse a secret of an installation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed {0}")]
pub struct ParseInstallSecretError(&'static str);

macro_rules! install_secret {
    ($(#[$doc:meta])* $name:ident, $bytes:literal, $kind:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq)]
        pub struct $name([u8; $bytes]);

        impl $name {
            /// Returns a random secret. Fails if the operating system provides no randomness.
            pub fn random() -> Result<Self, getrandom::Error> {
                let mut bytes = [0; $bytes];
                getrandom::fill(&mut bytes)?;
                Ok(Self(bytes))
            }

            /// Returns the text that the browser gets. Callers never log it.
            pub fn reveal(&self) -> String {
                URL_SAFE_NO_PAD.encode(self.0)
            }

            /// Returns the hash that is stored and looked up.
            pub fn hash(&self) -> InstallHash {
                let label = concat!("tidegate.", $kind, "\0");
                InstallHash(Sha256::new().chain_update(label).chain_update(self.0).finalize().into())
            }
        }

        impl FromStr for $name {
            type Err = ParseInstallSecretError;
            fn from_str(text: &str) -> Result<Self, ParseInstallSecretError> {
                let error = ParseInstallSecretError($kind);
                let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| error)?;
                bytes.try_into().map(Self).map_err(|_| error)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(…)"))
            }
        }
    };
}

install_secret! {
    /// Secret of an install link: 192 bits in its path.
    InstallLink, 24, "install-link"
}
install_secret! {
    /// OAuth's `state`: 128 bits, valid once.
    InstallState, 16, "install-state"
}
install_secret! {
    /// Browser that began an installation: 256 bits in a cookie.
    InstallBrowser, 32, "install-browser"
}

impl InstallBrowser {
    /// Returns the code verifier of PKCE for a state. It is derived from the cookie and not stored,
    /// so that only the browser that began an installation can complete it.
    pub fn code_verifier(&self, state: &InstallState) -> CodeVerifier {
        let hash = Sha256::new()
            .chain_update(b"tidegate.code-verifier\0")
            .chain_update(self.0)
            .chain_update(state.0);
        CodeVerifier(URL_SAFE_NO_PAD.encode(hash.finalize()))
    }
}

/// Code verifier of PKCE (RFC 7636).
#[derive(Clone)]
pub struct CodeVerifier(String);

impl CodeVerifier {
    /// Returns the challenge of method `S256`.
    pub fn challenge(&self) -> String {
        URL_SAFE_NO_PAD.encode(Sha256::digest(self.0.as_bytes()))
    }

    /// Returns the verifier for the exchange of a code. Callers never log it.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for CodeVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CodeVerifier(…)")
    }
}

/// SHA-256 of a secret of an installation. 128 random bits need no salt or slow hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InstallHash([u8; 32]);

impl InstallHash {
    /// Returns the hash of a column. `None` unless it has 32 bytes.
    pub fn from_stored(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Returns the bytes of the column.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the id for operators: the first 16 hex digits.
    pub fn id(&self) -> String {
        self.0.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_revealed_secrets() {
        let state = InstallState::random().expect("randomness");
        assert_eq!(state.reveal().parse(), Ok(state.clone()));
        assert_eq!(state.reveal().len(), 22);
        for wrong in ["", "x", &state.reveal()[1..], "AAAAAAAAAAAAAAAAAAAAA="] {
            assert!(wrong.parse::<InstallState>().is_err(), "{wrong}");
        }
        assert_eq!(format!("{state:?}"), "InstallState(…)");
    }

    /// The example of RFC 7636, appendix B.
    #[test]
    fn challenges_as_rfc_7636() {
        let verifier = CodeVerifier("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk".into());
        assert_eq!(verifier.challenge(), "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM");
    }

    #[test]
    fn verifiers_differ_by_browser() {
        let browsers = [(); 2].map(|()| InstallBrowser::random().expect("randomness"));
        let states = [(); 2].map(|()| InstallState::random().expect("randomness"));
        let mut verifiers = std::collections::BTreeSet::new();
        for browser in &browsers {
            for state in &states {
                let verifier = browser.code_verifier(state);
                assert!((43..=128).contains(&verifier.0.len()));
                assert_eq!(verifier.challenge(), browser.code_verifier(state).challenge());
                verifiers.insert(verifier.0);
            }
        }
        assert_eq!(verifiers.len(), 4);
    }
}
