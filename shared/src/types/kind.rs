//! Kinds of webhooks.

use std::{fmt, str::FromStr};

/// Kind of a webhook. A header of the envelope and a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Event of the Events API. Slack resends an event that is not acknowledged.
    Event,
    /// Slash command. Slack never resends it.
    Command,
    /// Click, shortcut or view. Slack never resends it.
    Interaction,
    /// Options load (`block_suggestion`). Its sync response must be in the HTTP response.
    Options,
    /// Signed by Slack, but of unknown form. Stored, and moved to the dead letters by the worker.
    Unknown,
}

impl Kind {
    /// Returns the kind as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Event => "event",
            Kind::Command => "command",
            Kind::Interaction => "interaction",
            Kind::Options => "options",
            Kind::Unknown => "unknown",
        }
    }
}

impl FromStr for Kind {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let all = [Kind::Event, Kind::Command, Kind::Interaction, Kind::Options, Kind::Unknown];
        all.into_iter().find(|kind| kind.as_str() == text).ok_or(())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
