//! Kinds of webhooks.

use std::{fmt, str::FromStr};

/// Kind of a webhook. A header of the envelope and a metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WebhookKind {
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

impl WebhookKind {
    /// Returns the kind as stored.
    pub fn as_str(self) -> &'static str {
        match self {
            WebhookKind::Event => "event",
            WebhookKind::Command => "command",
            WebhookKind::Interaction => "interaction",
            WebhookKind::Options => "options",
            WebhookKind::Unknown => "unknown",
        }
    }
}

impl FromStr for WebhookKind {
    type Err = ();
    fn from_str(text: &str) -> Result<Self, ()> {
        let all = [
            WebhookKind::Event,
            WebhookKind::Command,
            WebhookKind::Interaction,
            WebhookKind::Options,
            WebhookKind::Unknown,
        ];
        all.into_iter().find(|kind| kind.as_str() == text).ok_or(())
    }
}

impl fmt::Display for WebhookKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
