//! Secrets in memory, and their encryption at rest.
//!
//! Encrypts secrets for Postgres and the directory with XChaCha20-Poly1305, whose random 192-bit
//! nonce needs no counter. In a key ring the first key encrypts and every key decrypts, so that
//! keys rotate without downtime. Row and column are authenticated as associated data: a value that
//! is copied to another row or column does not decrypt.
//!
//! There are two rings: signing secrets (ingest and worker) and tokens (worker only), so that a
//! compromised ingest has no tokens.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use secrecy::{ExposeSecret, SecretString};
use std::{fmt, str::FromStr, sync::Arc};
use zeroize::Zeroizing;

/// Secret in clear. Prints as `Secret(…)`. Wiped on drop.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Wraps a clear text. Rejects an empty one: an empty signing secret would verify forgeries.
    pub fn new(clear: String) -> Result<Self, EmptySecret> {
        if clear.is_empty() { Err(EmptySecret) } else { Ok(Self(clear.into())) }
    }

    /// Returns the clear text.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Failure to create an empty secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a secret must not be empty")]
pub struct EmptySecret;

/// Row and column that a value is sealed for.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Key of the row: id of a connection or agent.
    pub owner: &'a str,
    /// Table and column, as `connections.bot_token`.
    pub column: &'static str,
}

/// Sealed value: `<key id>:<base64 of nonce and ciphertext>`. Unreadable without the ring.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Sealed(String);

impl Sealed {
    /// Returns the value as stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Wraps the text of a column or directory entry. Opening verifies the text.
    pub fn stored(text: String) -> Self {
        Self(text)
    }

    /// Returns the id of the key that sealed the value, for key rotation.
    pub fn key_id(&self) -> &str {
        self.0.split(':').next().unwrap_or_default()
    }
}

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sealed({}:…)", self.key_id())
    }
}

/// Failure to open a sealed value. Contains no part of the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unopened {
    /// The ring lacks the key.
    #[error("key {0:?} is not in the key ring")]
    NoKey(String),
    /// The value is damaged, or sealed for another row or column.
    #[error("failed to open {0}: damaged, or sealed for another row or column")]
    Refused(&'static str),
}

/// Keys by id, as `k2:<base64 of 32 bytes>,k1:<…>`. The first seals, all open.
#[derive(Clone)]
pub struct KeyRing(Arc<[Key]>);

struct Key {
    id: String,
    cipher: XChaCha20Poly1305,
}

impl fmt::Debug for KeyRing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|key| &key.id)).finish()
    }
}

/// Failure to parse a key ring. Contains no part of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeyRing {
    /// The entry is not `id:key`.
    #[error("entry {0} of the key ring is not <id>:<base64 key>")]
    Shape(usize),
    /// The key is not 32 bytes of base64.
    #[error("key {0:?} of the key ring is not 32 bytes in base64 (try: openssl rand -base64 32)")]
    Key(String),
    /// The id occurs twice.
    #[error("key id {0:?} occurs twice in the key ring")]
    Twice(String),
}

impl FromStr for KeyRing {
    type Err = InvalidKeyRing;
    fn from_str(text: &str) -> Result<Self, InvalidKeyRing> {
        let mut keys: Vec<Key> = Vec::new();
        for (n, entry) in text.split(',').enumerate() {
            let (id, key) = entry.trim().split_once(':').ok_or(InvalidKeyRing::Shape(n + 1))?;
            if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
                return Err(InvalidKeyRing::Shape(n + 1));
            }
            if keys.iter().any(|key| key.id == id) {
                return Err(InvalidKeyRing::Twice(id.to_owned()));
            }
            let bytes = Zeroizing::new(BASE64.decode(key).unwrap_or_default());
            let cipher = XChaCha20Poly1305::new_from_slice(&bytes)
                .map_err(|_| InvalidKeyRing::Key(id.to_owned()))?;
            keys.push(Key { id: id.to_owned(), cipher });
        }
        Ok(Self(keys.into()))
    }
}

impl KeyRing {
    /// Returns a ring with one new key, as text for the setting.
    pub fn generate(id: &str) -> Result<String, getrandom::Error> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(key.as_mut_slice())?;
        Ok(format!("{id}:{}", BASE64.encode(key.as_slice())))
    }

    /// Returns the id of the key that seals.
    pub fn newest(&self) -> &str {
        &self.0[0].id // a ring is parsed from at least one entry
    }

    /// Seals bytes with the first key, as text.
    pub fn seal(&self, place: Place<'_>, clear: &[u8]) -> Result<Sealed, getrandom::Error> {
        let (id, sealed) = self.encrypt(place, clear)?;
        Ok(Sealed(format!("{id}:{}", BASE64.encode(sealed))))
    }

    /// Opens text that was sealed for this row and column.
    pub fn open(&self, place: Place<'_>, sealed: &Sealed) -> Result<Zeroizing<Vec<u8>>, Unopened> {
        let refused = || Unopened::Refused(place.column);
        let (id, text) = sealed.0.split_once(':').ok_or_else(refused)?;
        self.decrypt(place, id, &BASE64.decode(text).map_err(|_| refused())?)
    }

    /// Seals bytes with the first key, as bytes: length of the key id, key id, nonce, ciphertext.
    pub fn seal_bytes(&self, place: Place<'_>, clear: &[u8]) -> Result<Vec<u8>, getrandom::Error> {
        let (id, sealed) = self.encrypt(place, clear)?;
        Ok([&[id.len() as u8], id.as_bytes(), &sealed].concat())
    }

    /// Opens bytes that were sealed for this row and column.
    pub fn open_bytes(
        &self,
        place: Place<'_>,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Unopened> {
        let refused = || Unopened::Refused(place.column);
        let (length, rest) = sealed.split_first().ok_or_else(refused)?;
        let (id, sealed) = rest.split_at_checked(usize::from(*length)).ok_or_else(refused)?;
        self.decrypt(place, std::str::from_utf8(id).map_err(|_| refused())?, sealed)
    }

    fn encrypt(&self, place: Place<'_>, clear: &[u8]) -> Result<(&str, Vec<u8>), getrandom::Error> {
        let key = &self.0[0]; // a ring is parsed from at least one entry
        let mut nonce = [0; 24];
        getrandom::fill(&mut nonce)?;
        let aad = aad(place, &key.id);
        let sealed = key
            .cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: clear, aad: &aad })
            .expect("XChaCha20-Poly1305 seals anything below 256 GiB");
        Ok((&key.id, [&nonce[..], &sealed].concat()))
    }

    fn decrypt(
        &self,
        place: Place<'_>,
        id: &str,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Unopened> {
        let refused = Unopened::Refused(place.column);
        let key = self.0.iter().find(|key| key.id == id).ok_or(Unopened::NoKey(id.to_owned()))?;
        let (nonce, cipher) = sealed.split_first_chunk::<24>().ok_or_else(|| refused.clone())?;
        let payload = Payload { msg: cipher, aad: &aad(place, id) };
        key.cipher.decrypt(&XNonce::from(*nonce), payload).map(Zeroizing::new).map_err(|_| refused)
    }

    /// Seals a secret.
    pub fn seal_secret(
        &self,
        place: Place<'_>,
        secret: &Secret,
    ) -> Result<Sealed, getrandom::Error> {
        self.seal(place, secret.expose().as_bytes())
    }

    /// Opens a secret.
    pub fn open_secret(&self, place: Place<'_>, sealed: &Sealed) -> Result<Secret, Unopened> {
        let clear = self.open(place, sealed)?;
        let text = std::str::from_utf8(&clear).map_err(|_| Unopened::Refused(place.column))?;
        Secret::new(text.to_owned()).map_err(|EmptySecret| Unopened::Refused(place.column))
    }
}

fn aad(place: Place<'_>, key_id: &str) -> Vec<u8> {
    [place.owner, place.column, key_id].join("\0").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(id: &str) -> String {
        KeyRing::generate(id).expect("randomness")
    }
    const HERE: Place<'static> = Place { owner: "c1", column: "connections.bot_token" };

    #[test]
    fn seals_with_first_key_opens_with_all() {
        let old = ring("k1");
        let sealed = old.parse::<KeyRing>().expect("ring").seal(HERE, b"clear").expect("sealed");
        let both: KeyRing = format!("{},{old}", ring("k2")).parse().expect("ring");
        assert_eq!(both.open(HERE, &sealed).expect("opens").as_slice(), b"clear");
        assert_eq!(both.seal(HERE, b"x").expect("sealed").key_id(), "k2");
        let new: KeyRing = ring("k2").parse().expect("ring");
        assert_eq!(new.open(HERE, &sealed).err(), Some(Unopened::NoKey("k1".into())));
    }

    #[test]
    fn opens_only_for_same_row_and_column() {
        let ring: KeyRing = ring("k1").parse().expect("ring");
        let sealed = ring.seal(HERE, b"clear").expect("sealed");
        for place in [Place { owner: "c2", ..HERE }, Place { column: "connections.other", ..HERE }]
        {
            assert!(matches!(ring.open(place, &sealed), Err(Unopened::Refused(_))));
        }
    }

    #[test]
    fn reports_bad_rings_without_keys() {
        let twice = format!("{},{}", ring("k1"), ring("k1"));
        for (text, expected) in [
            ("", "entry 1"),
            ("k1", "entry 1"),
            ("k1:c2hvcnQ=", "32 bytes"),
            (twice.as_str(), "occurs twice"),
        ] {
            let error = text.parse::<KeyRing>().expect_err("bad").to_string();
            assert!(error.contains(expected) && !error.contains("c2hvcnQ"), "{error}");
        }
    }

    #[test]
    fn prints_no_secrets() {
        let secret = Secret::new("xoxb-1".into()).expect("not empty");
        let ring: KeyRing = ring("k1").parse().expect("ring");
        let sealed = ring.seal_secret(HERE, &secret).expect("sealed");
        let printed = format!("{secret:?} {ring:?} {sealed:?}");
        assert_eq!(printed, r#"Secret(…) ["k1"] Sealed(k1:…)"#);
    }
}
