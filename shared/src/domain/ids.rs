//! Ids, each with its own type, so that a call can't swap two of them.
//!
//! Every id has 1 to 64 characters of `A–Z a–z 0–9 _ -`. It is therefore safe as a token of a NATS
//! subject, as part of a key and as a header value. Slack's own format is not checked, so that a
//! new format of Slack's ids causes no outage.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Failure to parse an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} must be {rule}")]
pub struct InvalidIdError {
    kind: &'static str,
    rule: &'static str,
}

/// Maximum length of an id in bytes. Slack's ids have fewer than 20 today.
const ID_BYTES_MAX: usize = 64;

fn check(kind: &'static str, text: &str) -> Result<(), InvalidIdError> {
    let safe = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if (1..=ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(safe) {
        Ok(())
    } else {
        Err(InvalidIdError { kind, rule: "1 to 64 letters, digits, '_' or '-'" })
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $name(String);

        impl $name {
            /// Returns the id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidIdError;
            fn try_from(text: String) -> Result<Self, InvalidIdError> {
                check($kind, &text).map(|()| Self(text))
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidIdError;
            fn from_str(text: &str) -> Result<Self, InvalidIdError> {
                check($kind, text).map(|()| Self(text.to_owned()))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id! {
    /// Slack workspace (`T…`). In organization-wide installations Slack may send an `E…` id here.
    TeamId, "a team id"
}
id! {
    /// Slack Enterprise organization (`E…`).
    EnterpriseId, "an enterprise id"
}
id! {
    /// Slack app (`A…`).
    AppId, "an app id"
}
id! {
    /// Slack conversation: channel (`C…`), private channel (`G…`) or direct message (`D…`).
    ChannelId, "a channel id"
}
id! {
    /// Slack user (`U…` or `W…`).
    UserId, "a user id"
}
id! {
    /// Organization: owner of connections and agents. Assigned by Tidegate, not by Slack.
    OrgId, "an organization id"
}
id! {
    /// Agent within its organization.
    AgentId, "an agent id"
}

impl ChannelId {
    /// Returns whether this is a direct message between one person and the bot.
    pub fn is_direct_message(&self) -> bool {
        self.0.starts_with('D')
    }
}

/// Connection: 128 random bits as 32 lower-case hex digits. An id can't be guessed, so ingest may
/// disclose that a connection is unknown.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ConnectionId(u128);

impl ConnectionId {
    /// Returns a random id. Fails if the operating system provides no randomness.
    pub fn random() -> Result<Self, getrandom::Error> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(u128::from_be_bytes(bytes)))
    }

    /// Returns the 16 bytes that are input to hashes.
    pub fn to_bytes(self) -> [u8; 16] {
        self.0.to_be_bytes()
    }
}

impl std::str::FromStr for ConnectionId {
    type Err = InvalidIdError;
    fn from_str(text: &str) -> Result<Self, InvalidIdError> {
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let is_canonical = text.len() == 32 && text.bytes().all(lower_hex);
        let bits = is_canonical.then(|| u128::from_str_radix(text, 16).ok()).flatten();
        bits.map(Self)
            .ok_or(InvalidIdError { kind: "a connection id", rule: "32 lower-case hex digits" })
    }
}

impl TryFrom<String> for ConnectionId {
    type Error = InvalidIdError;
    fn try_from(text: String) -> Result<Self, InvalidIdError> {
        text.parse()
    }
}

impl From<ConnectionId> for String {
    fn from(id: ConnectionId) -> String {
        id.to_string()
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_ids_unsafe_in_subjects() {
        for bad in ["", "a.b", "a b", "a*", ">", "a\r\nb", "ü", &"x".repeat(65)] {
            assert!(bad.parse::<TeamId>().is_err(), "{bad:?}");
        }
        assert!("T024BE7LD".parse::<TeamId>().is_ok());
    }

    #[test]
    fn rejects_respelled_connection_ids() {
        let id = "00ff00ff00ff00ff00ff00ff00ff00ff";
        assert_eq!(id.parse::<ConnectionId>().map(|id| id.to_string()).as_deref(), Ok(id));
        for bad in ["00FF00FF00FF00FF00FF00FF00FF00FF", "+0ff00ff00ff00ff00ff00ff00ff00ff", "0f"] {
            assert!(bad.parse::<ConnectionId>().is_err(), "{bad:?}");
        }
    }
}
