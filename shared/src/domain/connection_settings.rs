//! Settings of a connection.

use super::Surface;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Settings of a connection, as stored in the column. Absent fields have the values of [`Default`].
/// Unknown fields come from a newer release and are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ConnectionSettings {
    /// Surfaces on which the app links conversations and calls agents.
    pub surfaces: Vec<Surface>,
    /// Greets people who join the workspace.
    pub welcome: bool,
    /// Passes messages of other bots to the agent. A hop counter stops bots that answer each other.
    pub answer_bots: bool,
    /// Lets agents of the connection's organization notify whole channels and user groups.
    pub broadcasts: bool,
    /// Allows links to apps (mode `forward`) of other organizations, which get every webhook of
    /// their conversation as Slack sent it.
    pub foreign_apps: bool,
    /// People who may link, re-link and unlink conversations.
    pub link_by: LinkBy,
}

/// Change of a connection's settings. `None` leaves a setting as it is.
#[derive(Debug, Clone, Default)]
#[allow(missing_docs)] // the fields of `ConnectionSettings`
pub struct SettingsChange {
    pub surfaces: Option<Vec<Surface>>,
    pub welcome: Option<bool>,
    pub answer_bots: Option<bool>,
    pub broadcasts: Option<bool>,
    pub foreign_apps: Option<bool>,
    pub link_by: Option<LinkBy>,
}

impl SettingsChange {
    /// Returns settings with the change.
    pub fn apply(self, old: ConnectionSettings) -> ConnectionSettings {
        ConnectionSettings {
            surfaces: self.surfaces.unwrap_or(old.surfaces),
            welcome: self.welcome.unwrap_or(old.welcome),
            answer_bots: self.answer_bots.unwrap_or(old.answer_bots),
            broadcasts: self.broadcasts.unwrap_or(old.broadcasts),
            foreign_apps: self.foreign_apps.unwrap_or(old.foreign_apps),
            link_by: self.link_by.unwrap_or(old.link_by),
        }
    }
}

/// People who may change the binding of a conversation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LinkBy {
    /// Any member of the workspace.
    Anyone,
    /// The person who linked the conversation; any member, if it is not linked.
    Binder,
    /// Declared members of the connection's organization.
    Admins,
}

impl fmt::Display for LinkBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LinkBy::Anyone => "anyone",
            LinkBy::Binder => "binder",
            LinkBy::Admins => "admins",
        })
    }
}

impl Default for ConnectionSettings {
    fn default() -> Self {
        Self {
            surfaces: vec![Surface::Dm, Surface::Channel],
            welcome: true,
            answer_bots: false,
            broadcasts: false,
            foreign_apps: false,
            link_by: LinkBy::Anyone,
        }
    }
}
