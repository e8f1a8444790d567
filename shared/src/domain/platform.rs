//! Chat platforms. Tidegate supports one. Link codes and identities of one are invalid on another.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Chat platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// Slack.
    Slack,
}

impl Platform {
    /// Returns the platform as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Platform::Slack => "slack",
        }
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Platform {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "slack" {
            Ok(Platform::Slack)
        } else {
            Err(format!("{text:?} is not a platform; use slack"))
        }
    }
}
