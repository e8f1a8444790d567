//! States of a connection: `pending → active → stopped | error | revoked`.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Status of a connection. Serialized as the words of the column and of the directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
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

/// Failure to parse a [`Status`].
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a connection status")]
pub struct UnknownStatus(String);

impl Status {
    /// Returns the status as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Active => "active",
            Status::Stopped => "stopped",
            Status::Error => "error",
            Status::Revoked => "revoked",
        }
    }
}

impl FromStr for Status {
    type Err = UnknownStatus;
    fn from_str(text: &str) -> Result<Self, UnknownStatus> {
        [Status::Pending, Status::Active, Status::Stopped, Status::Error, Status::Revoked]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or_else(|| UnknownStatus(text.to_owned()))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
