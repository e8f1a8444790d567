//! The two ways of calling an agent.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// How an agent is called. The words are those of the column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AgentMode {
    /// It is asked in JSON, and its answer is said.
    #[default]
    Reply,
    /// It is a Slack app: it gets what Slack sent.
    Forward,
}

/// A word that is no [`AgentMode`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no agent's mode: say reply or forward")]
pub struct UnknownMode(String);

impl AgentMode {
    /// The one word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            AgentMode::Reply => "reply",
            AgentMode::Forward => "forward",
        }
    }
}

impl FromStr for AgentMode {
    type Err = UnknownMode;
    fn from_str(word: &str) -> Result<Self, UnknownMode> {
        [AgentMode::Reply, AgentMode::Forward]
            .into_iter()
            .find(|mode| mode.as_str() == word)
            .ok_or_else(|| UnknownMode(word.to_owned()))
    }
}

impl fmt::Display for AgentMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
