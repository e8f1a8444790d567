//! Events that the operator's backend is notified of.

use serde::Deserialize;

/// Kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub enum NotificationEvent {
    /// A connection got a token. The backend's response may reject the installation.
    #[serde(rename = "connection.installed")]
    Installed,
    /// Slack granted other scopes.
    #[serde(rename = "connection.scopes_changed")]
    ScopesChanged,
    /// Slack removed the app or its tokens.
    #[serde(rename = "connection.uninstalled")]
    Uninstalled,
    /// Slack rejects the token.
    #[serde(rename = "connection.token_failed")]
    TokenFailed,
    /// A person used a link code.
    #[serde(rename = "link_code.used")]
    LinkCodeUsed,
    /// A webhook or delivery was given up on.
    #[serde(rename = "dead_letter.added")]
    DeadLetterAdded,
    /// A connection has too many open deliveries or dead letters.
    #[serde(rename = "limit.reached")]
    LimitReached,
}

impl NotificationEvent {
    /// All kinds.
    pub const ALL: [NotificationEvent; 7] = [
        NotificationEvent::Installed,
        NotificationEvent::ScopesChanged,
        NotificationEvent::Uninstalled,
        NotificationEvent::TokenFailed,
        NotificationEvent::LinkCodeUsed,
        NotificationEvent::DeadLetterAdded,
        NotificationEvent::LimitReached,
    ];

    /// Returns the name of the kind.
    pub fn as_str(self) -> &'static str {
        match self {
            NotificationEvent::Installed => "connection.installed",
            NotificationEvent::ScopesChanged => "connection.scopes_changed",
            NotificationEvent::Uninstalled => "connection.uninstalled",
            NotificationEvent::TokenFailed => "connection.token_failed",
            NotificationEvent::LinkCodeUsed => "link_code.used",
            NotificationEvent::DeadLetterAdded => "dead_letter.added",
            NotificationEvent::LimitReached => "limit.reached",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names() {
        for event in NotificationEvent::ALL {
            let name = serde_json::Value::from(event.as_str());
            let read: NotificationEvent = serde_json::from_value(name).expect("an event");
            assert_eq!(read, event);
        }
    }
}
