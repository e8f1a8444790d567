//! Author of a change, as the audit log records it.

use super::{TeamId, UserId};
use std::{fmt, str::FromStr};

/// Maximum length of an operator's name in bytes.
const NAME_BYTES_MAX: usize = 128;

/// Author of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Actor {
    /// Person at the command line.
    Operator(OperatorName),
    /// API key, by its id.
    ApiKey(String),
    /// Person in Slack.
    SlackUser {
        /// Workspace.
        team: TeamId,
        /// Person.
        user: UserId,
    },
    /// Slack, by an event about an installation.
    Slack,
    /// The operator's backend, by its answer to a notification.
    Backend,
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Actor::Operator(name) => write!(f, "operator:{name}"),
            Actor::ApiKey(id) => write!(f, "api-key:{id}"),
            Actor::SlackUser { team, user } => write!(f, "slack-user:{team}/{user}"),
            Actor::Slack => f.write_str("slack"),
            Actor::Backend => f.write_str("backend"),
        }
    }
}

/// Name of an operator: 1 to 128 bytes without control characters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OperatorName(String);

/// Failure to parse an [`OperatorName`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("an operator's name has 1 to 128 bytes and no control characters")]
pub struct InvalidOperatorNameError;

impl FromStr for OperatorName {
    type Err = InvalidOperatorNameError;
    fn from_str(text: &str) -> Result<Self, InvalidOperatorNameError> {
        let is_valid =
            (1..=NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control);
        if is_valid { Ok(Self(text.to_owned())) } else { Err(InvalidOperatorNameError) }
    }
}

impl fmt::Display for OperatorName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renders_actors() {
        let name = "alice@example.com".parse().expect("a name");
        assert_eq!(Actor::Operator(name).to_string(), "operator:alice@example.com");
        let (team, user) = ("T1".parse().expect("an id"), "U1".parse().expect("an id"));
        assert_eq!(Actor::SlackUser { team, user }.to_string(), "slack-user:T1/U1");
        assert_eq!(Actor::ApiKey("0af3".into()).to_string(), "api-key:0af3");
    }

    #[test]
    fn rejects_names_with_control_characters() {
        for wrong in ["", "a\nb", "a\u{1b}[2J", &"x".repeat(129)] {
            assert!(wrong.parse::<OperatorName>().is_err(), "{wrong:?}");
        }
    }
}
