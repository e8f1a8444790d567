//! Headers of calls to an agent. Their values are secrets.

use crate::secrets::Secret;
use std::{collections::BTreeMap, fmt};
use zeroize::Zeroizing;

/// Column that headers are sealed for.
pub const AGENT_HEADERS_COLUMN: &str = "agents.headers";
/// Maximum number of headers.
const HEADERS_MAX: usize = 16;
/// Maximum length of a name in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Maximum length of a value in bytes.
const VALUE_BYTES_MAX: usize = 8 * 1024;
/// Headers that Tidegate, HTTP or a signature sets.
#[rustfmt::skip]
const RESERVED: [&str; 14] = [
    "accept", "connection", "content-encoding", "content-length", "content-type", "expect", "host",
    "idempotency-key", "last-event-id", "te", "traceparent", "transfer-encoding", "upgrade",
    "user-agent",
];
/// Prefixes of such headers.
const RESERVED_PREFIXES: [&str; 3] = ["webhook-", "tidegate-", "x-slack-"];

/// Headers by lower-case name.
#[derive(Clone, Default)]
pub struct AgentHeaders(BTreeMap<String, Secret>);

/// Failure to accept a header.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidHeaderError {
    /// The name is malformed.
    #[error("malformed header name {0:?}; write letters, digits and -")]
    Name(String),
    /// The name is reserved.
    #[error("header {0} is set by Tidegate; remove it")]
    Reserved(String),
    /// The value has characters that a header can't have, or too many.
    #[error(
        "the value of header {0} has more than 8 KiB, or characters that are not printable ASCII"
    )]
    Value(String),
    /// There are too many headers.
    #[error("more than 16 headers; remove some")]
    TooMany,
}

impl AgentHeaders {
    /// Checks headers.
    pub fn new(
        headers: impl IntoIterator<Item = (String, Secret)>,
    ) -> Result<Self, InvalidHeaderError> {
        let mut all = BTreeMap::new();
        for (name, value) in headers {
            let name = name.to_ascii_lowercase();
            let is_word = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
            if !is_word || !(1..=NAME_BYTES_MAX).contains(&name.len()) {
                return Err(InvalidHeaderError::Name(name));
            }
            let has_prefix = RESERVED_PREFIXES.iter().any(|prefix| name.starts_with(prefix));
            if has_prefix || RESERVED.contains(&name.as_str()) {
                return Err(InvalidHeaderError::Reserved(name));
            }
            let text = value.expose();
            let is_printable = text.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
            if !is_printable || text.len() > VALUE_BYTES_MAX || text.trim() != text {
                return Err(InvalidHeaderError::Value(name));
            }
            all.insert(name, value);
        }
        if all.len() > HEADERS_MAX { Err(InvalidHeaderError::TooMany) } else { Ok(Self(all)) }
    }

    /// Returns names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Secret)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }

    /// Returns whether there are no headers.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns all headers as one secret, for comparisons. `None` if there are none.
    pub(in crate::store) fn joined(&self) -> Option<Secret> {
        let lines = self.0.iter().map(|(name, value)| format!("{name}: {}\n", value.expose()));
        Secret::new(lines.collect()).ok()
    }

    pub(super) fn to_clear(&self) -> Zeroizing<Vec<u8>> {
        let values: BTreeMap<&str, &str> = self.iter().map(|(n, v)| (n, v.expose())).collect();
        Zeroizing::new(serde_json::to_vec(&values).unwrap_or_default())
    }

    pub(super) fn from_clear(clear: &[u8]) -> Result<Self, String> {
        let values: BTreeMap<String, String> =
            serde_json::from_slice(clear).map_err(|error| error.to_string())?;
        let secret = |(name, value)| Some((name, Secret::new(value).ok()?));
        Ok(Self(values.into_iter().filter_map(secret).collect()))
    }
}

impl fmt::Debug for AgentHeaders {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "AgentHeaders({})", self.0.len())
    }
}

/// Headers of an agent, and those that were replaced a short time ago.
#[derive(Debug, Clone, Default)]
pub struct CurrentHeaders {
    /// Headers of calls.
    pub current: AgentHeaders,
    /// Headers for an agent that rejects the current ones.
    pub previous: Option<AgentHeaders>,
}

impl super::Agent {
    /// Returns whether the agent has these headers.
    pub(in crate::store) fn has_headers(&self, new: &AgentHeaders) -> bool {
        let text = |headers: &AgentHeaders| headers.joined().map(|all| all.expose().to_owned());
        text(&self.headers.current) == text(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &str, value: &str) -> Result<AgentHeaders, InvalidHeaderError> {
        AgentHeaders::new([(name.to_owned(), Secret::new(value.into()).expect("not empty"))])
    }

    #[test]
    fn rejects_unusable_headers() {
        let name = |name: &str| InvalidHeaderError::Name(name.into());
        let reserved = |name: &str| InvalidHeaderError::Reserved(name.into());
        let value = |name: &str| InvalidHeaderError::Value(name.into());
        for (header, text, error) in [
            ("a b", "x", name("a b")),
            ("", "x", name("")),
            ("Host", "x", reserved("host")),
            ("Webhook-Id", "x", reserved("webhook-id")),
            ("X-Slack-Signature", "x", reserved("x-slack-signature")),
            ("x-key", "a\r\nhost: b", value("x-key")),
            ("x-key", " a", value("x-key")),
        ] {
            assert_eq!(headers(header, text).err(), Some(error), "{header}");
        }
        let good = headers("Authorization", "Bearer t0p").expect("a header");
        assert_eq!(format!("{good:?}"), "AgentHeaders(1)");
        let read = AgentHeaders::from_clear(&good.to_clear()).expect("headers");
        let all: Vec<(&str, &str)> = read.iter().map(|(n, v)| (n, v.expose())).collect();
        assert_eq!(all, [("authorization", "Bearer t0p")]);
        let many = (0..17).map(|n| (format!("x-{n}"), Secret::new("v".into()).expect("a value")));
        assert_eq!(AgentHeaders::new(many).err(), Some(InvalidHeaderError::TooMany));
    }
}
