//! Modes of calling an agent.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Mode of calling an agent. Serialized as the values of the column `agents.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentMode {
    /// The agent gets a JSON request. Tidegate sends its reply to Slack.
    #[default]
    Reply,
    /// The agent is a Slack app and gets the webhook as Slack sent it.
    Forward,
}

/// Failure to parse an [`AgentMode`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not an agent mode; use reply or forward")]
pub struct UnknownModeError(String);

impl AgentMode {
    /// Returns the mode as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            AgentMode::Reply => "reply",
            AgentMode::Forward => "forward",
        }
    }
}

impl FromStr for AgentMode {
    type Err = UnknownModeError;
    fn from_str(text: &str) -> Result<Self, UnknownModeError> {
        [AgentMode::Reply, AgentMode::Forward]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| UnknownModeError(text.to_owned()))
    }
}

impl fmt::Display for AgentMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
