//! Secrets in memory, and their encryption at rest.
//!
//! Encrypts secrets for Postgres and the directory with XChaCha20-Poly1305, whose random 192-bit
//! nonce needs no counter. In a keyring the first key encrypts and every key decrypts, so that keys
//! rotate without downtime. Row and column are authenticated as associated data: a value that is
//! copied to another row or column does not decrypt.
//!
//! There are two keyrings: signing secrets (ingest and worker) and tokens (worker only), so that a
//! compromised ingest has no tokens.

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use chacha20poly1305::{
    KeyInit, XChaCha20Poly1305, XNonce,
    aead::{Aead, Payload},
};
use secrecy::{ExposeSecret, SecretString};
use std::{fmt, str::FromStr, sync::Arc};
use zeroize::Zeroizing;

/// Plaintext of a secret. Prints as `Secret(…)`. Wiped on drop.
#[derive(Clone)]
pub struct Secret(SecretString);

impl Secret {
    /// Wraps a plaintext. Rejects an empty one: an empty signing secret would verify forgeries.
    pub fn new(clear: String) -> Result<Self, EmptySecretError> {
        if clear.is_empty() { Err(EmptySecretError) } else { Ok(Self(clear.into())) }
    }

    /// Returns the plaintext.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// Returns the key of a Standard Webhooks secret: the text, or the decoded part of
    /// `whsec_<base64>`. `None` if that is not base64 of 24 to 64 bytes.
    pub fn webhook_key(&self) -> Option<Vec<u8>> {
        match self.expose().strip_prefix("whsec_") {
            None => Some(self.expose().into()),
            Some(key) => BASE64.decode(key).ok().filter(|key| (24..=64).contains(&key.len())),
        }
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
pub struct EmptySecretError;

/// Row and column that a value is sealed for.
#[derive(Debug, Clone, Copy)]
pub struct SealContext<'a> {
    /// Key of the row, such as the id of a connection.
    pub owner: &'a str,
    /// Table and column, as `connections.bot_token`.
    pub column: &'static str,
}

/// Sealed value: `<key id>:<base64 of nonce and ciphertext>`. Unreadable without the keyring.
#[derive(Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct SealedValue(String);

impl SealedValue {
    /// Returns the value as stored.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Wraps the text of a column or directory entry. Opening verifies the text.
    pub fn from_stored(text: String) -> Self {
        Self(text)
    }

    /// Returns the id of the key that sealed the value, for key rotation.
    pub fn key_id(&self) -> &str {
        self.0.split(':').next().unwrap_or_default()
    }
}

impl fmt::Debug for SealedValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedValue({}:…)", self.key_id())
    }
}

/// Failure to open a sealed value. Contains no part of the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnsealError {
    /// The keyring lacks the key.
    #[error("key {0:?} is not in the keyring")]
    UnknownKey(String),
    /// The value is damaged, or sealed for another row or column.
    #[error("failed to open {0}: damaged, or sealed for another row or column")]
    Unreadable(&'static str),
}

/// Failure to seal a value.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The keyring has no keys.
    #[error("the keyring is empty")]
    EmptyRing,
    /// The operating system provided no randomness.
    #[error("the operating system provided no randomness")]
    Randomness(#[from] getrandom::Error),
}

/// Keys with ids, parsed from `k2:<base64 of 32 bytes>,k1:<…>`. The first key seals, every key
/// opens. The default keyring is empty: it seals and opens nothing.
#[derive(Clone, Default)]
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

/// Failure to parse a keyring. Contains no part of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidKeyRingError {
    /// The entry is not `id:key`.
    #[error("entry {0} of the keyring is not <id>:<base64 key>")]
    MalformedEntry(usize),
    /// The key is not 32 bytes of base64.
    #[error("key {0:?} of the keyring is not 32 bytes in base64 (try: openssl rand -base64 32)")]
    InvalidKey(String),
    /// The id occurs twice.
    #[error("key id {0:?} occurs twice in the keyring")]
    DuplicateId(String),
}

/// Failure to parse the id of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected 1 to 64 letters and digits")]
pub struct KeyIdError;

/// Parses the id of a key, which precedes `:` in keyrings and sealed values.
pub fn key_id(text: &str) -> Result<String, KeyIdError> {
    let valid = (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric());
    valid.then(|| text.to_owned()).ok_or(KeyIdError)
}

impl FromStr for KeyRing {
    type Err = InvalidKeyRingError;
    fn from_str(text: &str) -> Result<Self, InvalidKeyRingError> {
        let mut keys: Vec<Key> = Vec::new();
        for (n, entry) in text.split(',').enumerate() {
            let (id, key) =
                entry.trim().split_once(':').ok_or(InvalidKeyRingError::MalformedEntry(n + 1))?;
            let id = key_id(id).map_err(|KeyIdError| InvalidKeyRingError::MalformedEntry(n + 1))?;
            if keys.iter().any(|key| key.id == id) {
                return Err(InvalidKeyRingError::DuplicateId(id));
            }
            let bytes = Zeroizing::new(BASE64.decode(key).unwrap_or_default());
            let cipher = XChaCha20Poly1305::new_from_slice(&bytes)
                .map_err(|_| InvalidKeyRingError::InvalidKey(id.clone()))?;
            keys.push(Key { id, cipher });
        }
        Ok(Self(keys.into()))
    }
}

impl KeyRing {
    /// Returns a keyring with one new key, as text for the setting.
    pub fn generate(id: &str) -> Result<String, getrandom::Error> {
        let mut key = Zeroizing::new([0; 32]);
        getrandom::fill(key.as_mut_slice())?;
        Ok(format!("{id}:{}", BASE64.encode(key.as_slice())))
    }

    /// Returns whether the keyring has no key.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether the keyring has a key with this id.
    pub fn has_key(&self, id: &str) -> bool {
        self.0.iter().any(|key| key.id == id)
    }

    /// Returns the id of the key that seals.
    pub fn newest_key_id(&self) -> &str {
        self.0.first().map_or("", |key| &key.id)
    }

    /// Seals bytes with the first key, as text.
    pub fn seal(&self, context: SealContext<'_>, clear: &[u8]) -> Result<SealedValue, SealError> {
        let (id, sealed) = self.encrypt(context, clear)?;
        Ok(SealedValue(format!("{id}:{}", BASE64.encode(sealed))))
    }

    /// Opens text that was sealed for this row and column.
    pub fn open(
        &self,
        context: SealContext<'_>,
        sealed: &SealedValue,
    ) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        let unreadable = || UnsealError::Unreadable(context.column);
        let (id, text) = sealed.0.split_once(':').ok_or_else(unreadable)?;
        self.decrypt(context, id, &BASE64.decode(text).map_err(|_| unreadable())?)
    }

    /// Seals bytes with the first key, as bytes: length of the key id, key id, nonce, ciphertext.
    pub fn seal_bytes(&self, context: SealContext<'_>, clear: &[u8]) -> Result<Vec<u8>, SealError> {
        let (id, sealed) = self.encrypt(context, clear)?;
        Ok([&[id.len() as u8], id.as_bytes(), &sealed].concat())
    }

    /// Opens bytes that were sealed for this row and column.
    pub fn open_bytes(
        &self,
        context: SealContext<'_>,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        let unreadable = || UnsealError::Unreadable(context.column);
        let (length, rest) = sealed.split_first().ok_or_else(unreadable)?;
        let (id, sealed) = rest.split_at_checked(usize::from(*length)).ok_or_else(unreadable)?;
        self.decrypt(context, std::str::from_utf8(id).map_err(|_| unreadable())?, sealed)
    }

    fn encrypt(
        &self,
        context: SealContext<'_>,
        clear: &[u8],
    ) -> Result<(&str, Vec<u8>), SealError> {
        let key = self.0.first().ok_or(SealError::EmptyRing)?;
        let mut nonce = [0; 24];
        getrandom::fill(&mut nonce)?;
        let aad = aad(context, &key.id);
        let sealed = key
            .cipher
            .encrypt(&XNonce::from(nonce), Payload { msg: clear, aad: &aad })
            .expect("XChaCha20-Poly1305 seals anything below 256 GiB");
        Ok((&key.id, [&nonce[..], &sealed].concat()))
    }

    fn decrypt(
        &self,
        context: SealContext<'_>,
        id: &str,
        sealed: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, UnsealError> {
        let unreadable = UnsealError::Unreadable(context.column);
        let key =
            self.0.iter().find(|key| key.id == id).ok_or(UnsealError::UnknownKey(id.to_owned()))?;
        let (nonce, cipher) = sealed.split_first_chunk::<24>().ok_or_else(|| unreadable.clone())?;
        let payload = Payload { msg: cipher, aad: &aad(context, id) };
        key.cipher
            .decrypt(&XNonce::from(*nonce), payload)
            .map(Zeroizing::new)
            .map_err(|_| unreadable)
    }

    /// Seals a secret.
    pub fn seal_secret(
        &self,
        context: SealContext<'_>,
        secret: &Secret,
    ) -> Result<SealedValue, SealError> {
        self.seal(context, secret.expose().as_bytes())
    }

    /// Opens a secret.
    pub fn open_secret(
        &self,
        context: SealContext<'_>,
        sealed: &SealedValue,
    ) -> Result<Secret, UnsealError> {
        let clear = self.open(context, sealed)?;
        let text =
            std::str::from_utf8(&clear).map_err(|_| UnsealError::Unreadable(context.column))?;
        Secret::new(text.to_owned())
            .map_err(|EmptySecretError| UnsealError::Unreadable(context.column))
    }
}

fn aad(context: SealContext<'_>, key_id: &str) -> Vec<u8> {
    [context.owner, context.column, key_id].join("\0").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ring(id: &str) -> String {
        KeyRing::generate(id).expect("randomness")
    }
    const HERE: SealContext<'static> = SealContext { owner: "c1", column: "connections.bot_token" };

    #[test]
    fn seals_with_first_key_opens_with_all() {
        let old = ring("k1");
        let sealed = old.parse::<KeyRing>().expect("ring").seal(HERE, b"clear").expect("sealed");
        let both: KeyRing = format!("{},{old}", ring("k2")).parse().expect("ring");
        assert_eq!(both.open(HERE, &sealed).expect("opens").as_slice(), b"clear");
        assert_eq!(both.seal(HERE, b"x").expect("sealed").key_id(), "k2");
        let new: KeyRing = ring("k2").parse().expect("ring");
        assert_eq!(new.open(HERE, &sealed).err(), Some(UnsealError::UnknownKey("k1".into())));
    }

    #[test]
    fn empty_ring_neither_seals_nor_opens() {
        let sealed = ring("k1").parse::<KeyRing>().expect("ring").seal(HERE, b"x").expect("sealed");
        let empty = KeyRing::default();
        assert!(matches!(empty.seal(HERE, b"x"), Err(SealError::EmptyRing)));
        assert_eq!(empty.open(HERE, &sealed).err(), Some(UnsealError::UnknownKey("k1".into())));
    }

    /// Processes accept the keyrings that `tidegate keygen` writes.
    #[test]
    fn key_ids_are_valid_in_rings() {
        for id in ["k1", "2026", &"k".repeat(64)] {
            let id = key_id(id).expect("valid");
            assert_eq!(ring(&id).parse::<KeyRing>().expect("a ring").newest_key_id(), id);
        }
        for id in ["", "a-b", "a_b", "a:b", "a,b", "ä", &"k".repeat(65)] {
            assert_eq!(key_id(id), Err(KeyIdError), "{id}");
        }
    }

    #[test]
    fn opens_only_for_same_row_and_column() {
        let ring: KeyRing = ring("k1").parse().expect("ring");
        let sealed = ring.seal(HERE, b"clear").expect("sealed");
        for context in [
            SealContext { owner: "c2", ..HERE },
            SealContext { column: "connections.other", ..HERE },
        ] {
            assert!(matches!(ring.open(context, &sealed), Err(UnsealError::Unreadable(_))));
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

    /// Checks keys of keyrings and the SHA-256 states inside HMACs, at compile time.
    #[test]
    fn wipes_keys_on_drop() {
        fn is_wiped<T: zeroize::ZeroizeOnDrop>() {}
        is_wiped::<XChaCha20Poly1305>();
        is_wiped::<sha2::Sha256>();
    }

    #[test]
    fn prints_no_secrets() {
        let secret = Secret::new("xoxb-1".into()).expect("not empty");
        let ring: KeyRing = ring("k1").parse().expect("ring");
        let sealed = ring.seal_secret(HERE, &secret).expect("sealed");
        let printed = format!("{secret:?} {ring:?} {sealed:?}");
        assert_eq!(printed, r#"Secret(…) ["k1"] SealedValue(k1:…)"#);
    }
}
