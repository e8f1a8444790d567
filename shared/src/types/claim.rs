//! A link claim's code and where it may be used.
//!
//! A code is a bearer secret until it is consumed: 60 random bits as 12 characters in three groups, in an
//! alphabet without look-alikes. Only its hash is stored. Case, spaces around it and the dashes don't
//! matter to whoever types it.

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{fmt, str::FromStr};

/// Crockford's base-32 digits: no I, L, O or U, so nothing is read for something else.
const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const DIGITS: usize = 12;

/// What a user types after `/lobu link`. Leaves this type only as a hash, or by [`ClaimCode::reveal`]
/// to the person who asked for it.
#[derive(Clone, PartialEq, Eq)]
pub struct ClaimCode([u8; DIGITS]);

/// A text that can't be a code, whatever codes exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a link code has 12 letters and digits, as in 7K3M-Q2XW-9FHA")]
pub struct NotACode;

impl ClaimCode {
    /// A fresh code. Fails only when the operating system has no randomness.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; DIGITS];
        getrandom::fill(&mut bytes)?;
        // 256 is a multiple of 32, so the low five bits of a random byte are evenly spread.
        Ok(Self(bytes.map(|b| ALPHABET[usize::from(b & 31)])))
    }

    /// The code as a person types it. Show it once; never log it.
    pub fn reveal(&self) -> String {
        let digits: String = self.0.iter().map(|&b| char::from(b)).collect();
        format!("{}-{}-{}", &digits[..4], &digits[4..8], &digits[8..])
    }

    /// What is stored and looked up.
    pub fn hash(&self) -> ClaimHash {
        ClaimHash(
            Sha256::new().chain_update(b"tidegate.claim\0").chain_update(self.0).finalize().into(),
        )
    }
}

impl FromStr for ClaimCode {
    type Err = NotACode;
    fn from_str(text: &str) -> Result<Self, NotACode> {
        let mut digits = [0; DIGITS];
        let mut n = 0;
        for b in text.trim().bytes().filter(|&b| b != b'-') {
            let b = match b.to_ascii_uppercase() {
                b'O' => b'0',
                b'I' | b'L' => b'1',
                other => other,
            };
            if n == DIGITS || !ALPHABET.contains(&b) {
                return Err(NotACode);
            }
            digits[n] = b;
            n += 1;
        }
        if n == DIGITS { Ok(Self(digits)) } else { Err(NotACode) }
    }
}

impl fmt::Debug for ClaimCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClaimCode(…)")
    }
}

/// SHA-256 of a code. 60 random bits behind a limit on guesses need no salt or slow hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ClaimHash([u8; 32]);

impl ClaimHash {
    /// The bytes of the column.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Where a code may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Surface {
    /// A direct message of one person with the bot.
    Dm,
    /// Any other conversation, group messages included.
    Channel,
}

impl Surface {
    /// The one word for it.
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
    fn from_str(word: &str) -> Result<Self, String> {
        match word {
            "dm" => Ok(Surface::Dm),
            "channel" => Ok(Surface::Channel),
            other => Err(format!("{other:?} is no surface; say dm or channel")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_survives_the_ways_people_type_it() {
        let code = ClaimCode::random().expect("randomness");
        let shown = code.reveal();
        for typed in
            [shown.clone(), shown.to_lowercase(), shown.replace('-', ""), format!(" {shown} ")]
        {
            assert_eq!(typed.parse::<ClaimCode>().as_ref(), Ok(&code), "{typed}");
        }
        assert_eq!("o1i-l".repeat(3).parse::<ClaimCode>(), "0111-0111-0111".parse());
    }

    #[test]
    fn what_is_no_code_is_refused() {
        for bad in
            ["", "link", "7K3M-Q2XW-9FH", "7K3M-Q2XW-9FHAA", "7K3M-Q2XW-9FHU", "7K3M Q2XW 9FHA"]
        {
            assert_eq!(bad.parse::<ClaimCode>(), Err(NotACode), "{bad:?}");
        }
    }

    #[test]
    fn a_code_does_not_print() {
        let code = ClaimCode::random().expect("randomness");
        assert_eq!(format!("{code:?}"), "ClaimCode(…)");
    }
}
