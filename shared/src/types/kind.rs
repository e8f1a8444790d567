//! The five kinds of webhook. The word is a header of the envelope and a metric label.

use std::{fmt, str::FromStr};

/// What sort of webhook this is, as far as ingest has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Something happened in Slack (Events API). Slack sends it again if we don't take it.
    Event,
    /// A slash command. Never sent again.
    Command,
    /// A click, shortcut or view. Never sent again.
    Interaction,
    /// An options load (`block_suggestion`): its answer must be in the HTTP response.
    Options,
    /// Signed by Slack, not understood by us. Stored all the same; a person finds it among the dead.
    Unknown,
}

impl Kind {
    /// The one word for it.
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
    fn from_str(word: &str) -> Result<Self, ()> {
        let all = [Kind::Event, Kind::Command, Kind::Interaction, Kind::Options, Kind::Unknown];
        all.into_iter().find(|kind| kind.as_str() == word).ok_or(())
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
