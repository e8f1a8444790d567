//! Values and keys of the bucket.

use crate::{
    domain::{AppId, ConnectionId, ConnectionStatus, EnterpriseId, TeamId},
    secrets::SealedValue,
};
use serde::{Deserialize, Serialize};

/// Prefix of the keys of apps.
const APP_PREFIX: &str = "app.";

/// Value under an app's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum AppEntry {
    /// Declared app.
    Known {
        /// Version of the row, which rises with every change.
        version: i64,
        /// Valid signing secrets, newest first. Two during a rotation.
        signing_secrets: Vec<SealedSigningSecret>,
    },
    /// Deleted app.
    Deleted {
        /// Version above all versions of the app.
        version: i64,
    },
}

/// Value of the bucket.
pub(super) trait Entry: Serialize + for<'de> Deserialize<'de> {
    fn version(&self) -> i64;
    fn is_tombstone(&self) -> bool;
}

impl AppEntry {
    /// Returns the version.
    pub fn version(&self) -> i64 {
        match self {
            AppEntry::Known { version, .. } | AppEntry::Deleted { version } => *version,
        }
    }
}

impl Entry for AppEntry {
    fn version(&self) -> i64 {
        self.version()
    }

    fn is_tombstone(&self) -> bool {
        matches!(self, AppEntry::Deleted { .. })
    }
}

/// Returns the key of an app.
pub fn app_key(app: &AppId) -> String {
    format!("{APP_PREFIX}{app}")
}

/// Returns the app of a key, `None` for keys of teams and connections.
pub fn app_of_key(key: &str) -> Option<AppId> {
    key.strip_prefix(APP_PREFIX)?.parse().ok()
}

/// Value under a connection's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum DirectoryEntry {
    /// Existing connection.
    Known(ConnectionRecord),
    /// Deleted connection.
    Deleted {
        /// Version above all versions of the connection.
        version: i64,
    },
}

/// Fields of a connection that ingest needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectionRecord {
    /// Version of the row, which rises with every change.
    pub version: i64,
    /// Status.
    pub status: ConnectionStatus,
    /// Slack app.
    pub app: AppId,
    /// Enterprise organization, if any.
    pub enterprise: Option<EnterpriseId>,
    /// Workspace. `None` for organization-wide installations and preview connections.
    pub team: Option<TeamId>,
    /// Receives webhooks of the shared route that match no other connection.
    pub preview_mode: bool,
    /// Valid signing secrets, newest first. Two during a rotation: retention removes the previous
    /// one by Postgres's clock, which may differ from an ingest's. If empty, those of the app
    /// apply.
    pub signing_secrets: Vec<SealedSigningSecret>,
}

/// Sealed signing secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedSigningSecret {
    /// Secret, sealed with the signing keyring for [`SIGNING_SECRET_COLUMN`](super::SIGNING_SECRET_COLUMN) of its connection or
    /// [`APP_SIGNING_SECRET_COLUMN`](super::APP_SIGNING_SECRET_COLUMN) of its app.
    pub sealed: SealedValue,
}

/// Value under a team's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeamEntry {
    /// Version of the connection that wrote the entry.
    pub version: i64,
    /// Connection that receives the team's webhooks, or `None` after its removal.
    pub connection: Option<ConnectionId>,
}

impl Entry for TeamEntry {
    fn version(&self) -> i64 {
        self.version
    }

    fn is_tombstone(&self) -> bool {
        self.connection.is_none()
    }
}

impl ConnectionRecord {
    /// Returns the key of the connection's team on the shared route.
    pub fn team_key(&self) -> String {
        team_key(&self.app, self.enterprise.as_ref(), self.team.as_ref())
    }
}

impl DirectoryEntry {
    /// Returns the key of the connection's team on the shared route. `None` for a deleted
    /// connection.
    pub fn team_key(&self) -> Option<String> {
        match self {
            DirectoryEntry::Known(known) => Some(known.team_key()),
            DirectoryEntry::Deleted { .. } => None,
        }
    }

    /// Returns the version.
    pub fn version(&self) -> i64 {
        match self {
            DirectoryEntry::Known(known) => known.version,
            DirectoryEntry::Deleted { version } => *version,
        }
    }
}

impl Entry for DirectoryEntry {
    fn version(&self) -> i64 {
        self.version()
    }

    fn is_tombstone(&self) -> bool {
        matches!(self, DirectoryEntry::Deleted { .. })
    }
}

/// Returns the key of an installation on the shared route. A workspace's key has no enterprise:
/// Slack does not always name it. Ids contain no dots, so that keys are unambiguous.
pub fn team_key(app: &AppId, enterprise: Option<&EnterpriseId>, team: Option<&TeamId>) -> String {
    match (enterprise, team) {
        (_, Some(team)) => format!("team.{app}.{team}"),
        (Some(enterprise), None) => format!("enterprise.{app}.{enterprise}"),
        (None, None) => format!("preview.{app}"),
    }
}
