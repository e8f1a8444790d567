//! Link codes and the surfaces they may be used on.
//!
//! A code is a bearer secret until it is consumed: 60 random bits as 12 characters in three groups,
//! in an alphabet without look-alikes. Only the hash of a code is stored. Parsing ignores case,
//! surrounding spaces and dashes.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};

/// Crockford's base-32 digits, without I, L, O and U.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const DIGITS: usize = 12;

/// Code that a user types after `/lobu link`. Leaves this type only as a hash, or by
/// [`LinkCode::reveal`].
#[derive(Clone, PartialEq, Eq)]
pub struct LinkCode([u8; DIGITS]);

/// Failure to parse a [`LinkCode`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a link code has 12 letters and digits, as in 7K3M-Q2XW-9FHA")]
pub struct ParseLinkCodeError;

impl LinkCode {
    /// Returns a random code. Fails if the operating system provides no randomness.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; DIGITS];
        getrandom::fill(&mut bytes)?;
        // 256 is a multiple of 32, so the low five bits of a random byte are evenly distributed.
        Ok(Self(bytes.map(|b| ALPHABET[usize::from(b & 31)])))
    }

    /// Returns the code as a person types it. Callers show the code once and never log it.
    pub fn reveal(&self) -> String {
        let digits: String = self.0.iter().map(|&b| char::from(b)).collect();
        format!("{}-{}-{}", &digits[..4], &digits[4..8], &digits[8..])
    }

    /// Returns the hash that is stored and looked up.
    pub fn hash(&self) -> LinkCodeHash {
        LinkCodeHash(
            Sha256::new().chain_update(b"tidegate.claim\0").chain_update(self.0).finalize().into(),
        )
    }
}

impl FromStr for LinkCode {
    type Err = ParseLinkCodeError;
    fn from_str(text: &str) -> Result<Self, ParseLinkCodeError> {
        let mut digits = [0; DIGITS];
        let mut n = 0;
        for b in text.trim().bytes().filter(|&b| b != b'-') {
            let b = match b.to_ascii_uppercase() {
                b'O' => b'0',
                b'I' | b'L' => b'1',
                other => other,
            };
            if n == DIGITS || !ALPHABET.contains(&b) {
                return Err(ParseLinkCodeError);
            }
            digits[n] = b;
            n += 1;
        }
        if n == DIGITS { Ok(Self(digits)) } else { Err(ParseLinkCodeError) }
    }
}

impl fmt::Debug for LinkCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LinkCode(…)")
    }
}

/// SHA-256 of a code. 60 random bits behind a limit on attempts need no salt or slow hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LinkCodeHash([u8; 32]);

impl LinkCodeHash {
    /// Returns the bytes of the column.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Returns the id of the code for operators: the first 16 hex digits.
    pub fn id(&self) -> String {
        self.0.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Kind of conversation in which a code may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Surface {
    /// Direct message between one person and the bot.
    Dm,
    /// Any other conversation, including group messages.
    Channel,
}

impl Surface {
    /// Returns the surface as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Surface::Dm => "dm",
            Surface::Channel => "channel",
        }
    }
}

impl fmt::Display for Surface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Surface {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "dm" => Ok(Surface::Dm),
            "channel" => Ok(Surface::Channel),
            other => Err(format!("{other:?} is not a surface; use dm or channel")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_variant_spellings() {
        let code = LinkCode::random().expect("randomness");
        let shown = code.reveal();
        for typed in
            [shown.clone(), shown.to_lowercase(), shown.replace('-', ""), format!(" {shown} ")]
        {
            assert_eq!(typed.parse::<LinkCode>().as_ref(), Ok(&code), "{typed}");
        }
        assert_eq!("o1i-l".repeat(3).parse::<LinkCode>(), "0111-0111-0111".parse());
    }

    #[test]
    fn rejects_malformed_codes() {
        for bad in
            ["", "link", "7K3M-Q2XW-9FH", "7K3M-Q2XW-9FHAA", "7K3M-Q2XW-9FHU", "7K3M Q2XW 9FHA"]
        {
            assert_eq!(bad.parse::<LinkCode>(), Err(ParseLinkCodeError), "{bad:?}");
        }
    }

    #[test]
    fn prints_no_codes() {
        let code = LinkCode::random().expect("randomness");
        assert_eq!(format!("{code:?}"), "LinkCode(…)");
    }
}
