//! States of a connection: `pending → active → stopped | error | revoked`.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Status of a connection. Serialized as the values of the column and of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConnectionStatus {
    /// Answers Slack's `url_verification`, but handles no webhooks yet.
    Pending,
    /// Handles webhooks.
    Active,
    /// Disabled by a person.
    Stopped,
    /// Slack rejects its token. Sends are still attempted.
    Error,
    /// The app was uninstalled or its tokens were revoked.
    Revoked,
}

/// Failure to parse a [`ConnectionStatus`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a connection status")]
pub struct UnknownStatusError(String);

impl ConnectionStatus {
    /// Returns the status as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            ConnectionStatus::Pending => "pending",
            ConnectionStatus::Active => "active",
            ConnectionStatus::Stopped => "stopped",
            ConnectionStatus::Error => "error",
            ConnectionStatus::Revoked => "revoked",
        }
    }
}

impl FromStr for ConnectionStatus {
    type Err = UnknownStatusError;
    fn from_str(text: &str) -> Result<Self, UnknownStatusError> {
        [
            ConnectionStatus::Pending,
            ConnectionStatus::Active,
            ConnectionStatus::Stopped,
            ConnectionStatus::Error,
            ConnectionStatus::Revoked,
        ]
        .into_iter()
        .find(|status| status.as_str() == text)
        .ok_or_else(|| UnknownStatusError(text.to_owned()))
    }
}

impl fmt::Display for ConnectionStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
