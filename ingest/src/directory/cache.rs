//! In-memory cache of the directory bucket.
//!
//! Entries may be applied in any order and repeatedly: the newest version wins. An entry that fails
//! to decode is logged and skipped.
//!
//! A tombstone refuses older versions of its key. The cache forgets it after an hour, so that
//! deletions do not fill the memory. No older version is applied later: `follower` receives the
//! messages of a key in order, and a lookup that read the bucket before the deletion ends after its
//! timeout of a second. Lookups of a forgotten key read the bucket like those of an unknown key,
//! with the same result as before: no connection.
//!
//! A recreated bucket gets its entries from Postgres, so it has no deleted connections. A bucket
//! that was restored from a backup may have some. They are then known until a worker writes their
//! tombstones, as to an ingest that has just started.

use super::SigningKey;
use shared::{
    directory::{
        APP_SIGNING_SECRET_COLUMN, AppEntry, ConnectionRecord, DirectoryEntry,
        SIGNING_SECRET_COLUMN, SealedSigningSecret, TeamEntry, app_of_key,
    },
    domain::{AppId, ConnectionId, ConnectionStatus, EnterpriseId, TeamId},
    secrets::{KeyRing, SealContext},
    slack::InboundPayload,
};
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::Duration,
};
use tokio::time::Instant;
use tracing::warn;

/// Time after which a tombstone is forgotten.
const TOMBSTONE_CACHE_PERIOD: Duration = Duration::from_secs(3600);
/// Maximum number of tombstones that are forgotten at once: webhooks wait for the lock.
const FORGOTTEN_MAX: usize = 1_000;

/// Connection with unsealed signing secrets.
#[derive(Debug)]
pub struct Connection {
    /// Id of the connection.
    pub id: ConnectionId,
    /// Slack app of the connection.
    pub app: AppId,
    /// Enterprise organization, if any.
    pub enterprise: Option<EnterpriseId>,
    /// Workspace. `None` for organization-wide installations and preview connections.
    pub team: Option<TeamId>,
    /// Status, which decides whether webhooks are accepted.
    pub status: ConnectionStatus,
    /// True for the app's fallback connection on the shared route.
    pub preview_mode: bool,
    pub(super) version: i64,
    pub(super) team_key: String,
    keys: Keys,
    uses_app_keys: bool,
}

/// Signing keys, newest first.
type Keys = Vec<SigningKey>;

/// Declared app with unsealed signing secrets.
#[derive(Debug)]
pub struct App {
    /// Slack's id of the app.
    pub id: AppId,
    version: i64,
    keys: Keys,
}

impl App {
    /// Returns the valid signing keys, newest first.
    pub fn keys(&self) -> impl Iterator<Item = &SigningKey> {
        self.keys.iter()
    }
}

impl Connection {
    /// Returns the valid signing keys, newest first.
    pub fn keys(&self) -> impl Iterator<Item = &SigningKey> {
        self.keys.iter()
    }

    /// Returns whether the secrets of the app verify the connection's webhooks.
    pub fn uses_app_keys(&self) -> bool {
        self.uses_app_keys
    }

    /// Returns whether a body belongs to this connection, or names neither app nor installation.
    pub fn may_receive(&self, inbound: &InboundPayload<'_>) -> bool {
        let (enterprise, team) = (self.enterprise.as_ref(), self.team.as_ref());
        let installations = inbound.installations();
        inbound.app().is_none_or(|app| app == self.app.as_str())
            && (installations.is_empty()
                || installations.iter().any(|named| named.may_be_of(enterprise, team)))
    }

    /// Returns whether the connection belongs to one installation. A preview connection does not.
    pub fn has_installation(&self) -> bool {
        self.team.is_some() || self.enterprise.is_some()
    }
}

/// Cache of the whole bucket. The lock is held for single reads and writes only.
pub(super) struct Cache {
    keyring: KeyRing,
    entries: RwLock<Entries>,
}

#[derive(Default)]
struct Entries {
    connections: HashMap<ConnectionId, CachedConnection>,
    apps: HashMap<AppId, CachedApp>,
    teams: HashMap<String, TeamEntry>,
    /// Tombstones in the order in which they were applied.
    tombstones: VecDeque<Tombstone>,
}

struct Tombstone {
    applied_at: Instant,
    key: Key,
    version: i64,
}

enum Key {
    Connection(ConnectionId),
    App(AppId),
    Team(String),
}

impl Entries {
    fn add_tombstone(&mut self, key: Key, version: i64) {
        self.tombstones.push_back(Tombstone { applied_at: Instant::now(), key, version });
    }

    /// Removes a tombstone, unless a newer version has replaced it.
    fn forget(&mut self, Tombstone { key, version, .. }: Tombstone) {
        match key {
            Key::Connection(id) => {
                if self.connections.get(&id).is_some_and(|cached| cached.version() == version) {
                    self.connections.remove(&id);
                }
            }
            Key::App(id) => {
                if self.apps.get(&id).is_some_and(|cached| cached.version() == version) {
                    self.apps.remove(&id);
                }
            }
            Key::Team(key) => {
                if self.teams.get(&key).is_some_and(|cached| cached.version == version) {
                    self.teams.remove(&key);
                }
            }
        }
    }
}

enum CachedApp {
    Present(Arc<App>),
    Deleted { version: i64 },
}

impl CachedApp {
    fn version(&self) -> i64 {
        match self {
            Self::Present(app) => app.version,
            Self::Deleted { version } => *version,
        }
    }
}

enum CachedConnection {
    Present(Arc<Connection>),
    Deleted { version: i64 },
}

impl CachedConnection {
    fn version(&self) -> i64 {
        match self {
            Self::Present(connection) => connection.version,
            Self::Deleted { version } => *version,
        }
    }
}

impl Cache {
    /// Creates an empty cache. `keyring` unseals signing secrets.
    pub fn new(keyring: KeyRing) -> Self {
        Self { keyring, entries: RwLock::default() }
    }

    /// Returns a connection, `Some(None)` if it was deleted, or `None` if it is not cached.
    pub fn connection(&self, id: ConnectionId) -> Option<Option<Arc<Connection>>> {
        self.read().connections.get(&id).map(|cached| match cached {
            CachedConnection::Present(connection) => Some(Arc::clone(connection)),
            CachedConnection::Deleted { .. } => None,
        })
    }

    /// Returns an app, `Some(None)` if it was deleted, or `None` if it is not cached.
    pub fn app(&self, id: &AppId) -> Option<Option<Arc<App>>> {
        self.read().apps.get(id).map(|cached| match cached {
            CachedApp::Present(app) => Some(Arc::clone(app)),
            CachedApp::Deleted { .. } => None,
        })
    }

    /// Returns all apps.
    pub fn apps(&self) -> Vec<Arc<App>> {
        let entries = self.read();
        let present = entries.apps.values().filter_map(|cached| match cached {
            CachedApp::Present(app) => Some(Arc::clone(app)),
            CachedApp::Deleted { .. } => None,
        });
        present.collect()
    }

    /// Returns the connection of a team key, `Some(None)` if the team has none, or `None` if the
    /// key is not cached.
    pub fn team_connection(&self, key: &str) -> Option<Option<ConnectionId>> {
        self.read().teams.get(key).map(|team| team.connection)
    }

    /// Returns the number of connections, without deleted ones.
    pub fn connection_count(&self) -> usize {
        let entries = self.read();
        let cached = entries.connections.values();
        cached.filter(|cached| matches!(cached, CachedConnection::Present(_))).count()
    }

    /// Returns whether the keyring opens none of the signing secrets of connections and apps. False
    /// without secrets: a connection may use those of its app.
    pub fn unseals_no_secret(&self) -> bool {
        let entries = self.read();
        let of_connections = entries.connections.values().filter_map(|cached| match cached {
            CachedConnection::Present(connection) if !connection.uses_app_keys => {
                Some(&connection.keys)
            }
            CachedConnection::Present(_) | CachedConnection::Deleted { .. } => None,
        });
        let of_apps = entries.apps.values().filter_map(|cached| match cached {
            CachedApp::Present(app) => Some(&app.keys),
            CachedApp::Deleted { .. } => None,
        });
        let mut keys = of_connections.chain(of_apps).peekable();
        keys.peek().is_some() && keys.all(Vec::is_empty)
    }

    /// Applies an entry of the bucket, unless the cache has a newer version.
    pub fn apply(&self, key: &str, value: &[u8]) {
        if let Some(id) = app_of_key(key) {
            match serde_json::from_slice(value) {
                Ok(app) => self.apply_app(id, app),
                Err(error) => warn!(key, %error, "failed to decode directory entry"),
            }
            return;
        }
        if key.contains('.') {
            match serde_json::from_slice(value) {
                Ok(team) => self.apply_team(key, team),
                Err(error) => warn!(key, %error, "failed to decode directory entry"),
            }
            return;
        }
        let Ok(id) = key.parse::<ConnectionId>() else {
            warn!(key, "unknown directory key skipped");
            return;
        };
        let new = match serde_json::from_slice::<DirectoryEntry>(value) {
            Ok(DirectoryEntry::Known(known)) => {
                CachedConnection::Present(Arc::new(self.unseal(id, &known)))
            }
            Ok(DirectoryEntry::Deleted { version }) => CachedConnection::Deleted { version },
            Err(error) => {
                warn!(key, %error, "failed to decode directory entry");
                return;
            }
        };
        let mut entries = self.write();
        if entries.connections.get(&id).is_none_or(|cached| cached.version() < new.version()) {
            if let CachedConnection::Deleted { version } = new {
                entries.add_tombstone(Key::Connection(id), version);
            }
            entries.connections.insert(id, new);
        }
    }

    /// Forgets tombstones that were applied [`TOMBSTONE_CACHE_PERIOD`] ago, at most
    /// [`FORGOTTEN_MAX`].
    pub fn forget_tombstones(&self) {
        let mut entries = self.write();
        for _ in 0..FORGOTTEN_MAX {
            let is_due = |next: &mut Tombstone| next.applied_at.elapsed() >= TOMBSTONE_CACHE_PERIOD;
            let Some(tombstone) = entries.tombstones.pop_front_if(is_due) else { return };
            entries.forget(tombstone);
        }
    }

    fn apply_team(&self, key: &str, team: TeamEntry) {
        let mut entries = self.write();
        if entries.teams.get(key).is_none_or(|cached| cached.version < team.version) {
            if team.connection.is_none() {
                entries.add_tombstone(Key::Team(key.to_owned()), team.version);
            }
            entries.teams.insert(key.to_owned(), team);
        }
    }

    fn apply_app(&self, id: AppId, entry: AppEntry) {
        let new = match entry {
            AppEntry::Known { version, signing_secrets } => {
                let context = SealContext { owner: id.as_str(), column: APP_SIGNING_SECRET_COLUMN };
                let keys = self.unseal_keys(context, &signing_secrets);
                CachedApp::Present(Arc::new(App { id: id.clone(), version, keys }))
            }
            AppEntry::Deleted { version } => CachedApp::Deleted { version },
        };
        let mut entries = self.write();
        if entries.apps.get(&id).is_none_or(|cached| cached.version() < new.version()) {
            if let CachedApp::Deleted { version } = new {
                entries.add_tombstone(Key::App(id.clone()), version);
            }
            entries.apps.insert(id, new);
        }
    }

    fn unseal_keys(&self, context: SealContext<'_>, secrets: &[SealedSigningSecret]) -> Keys {
        let mut keys = Vec::with_capacity(secrets.len());
        for secret in secrets {
            match self.keyring.open_secret(context, &secret.sealed) {
                Ok(clear) => keys.push(SigningKey::new(&clear)),
                // The connection or app stays in the cache. Its webhooks get 401.
                Err(error) => warn!(
                    owner = context.owner,
                    %error,
                    "failed to unseal signing secret; check TIDEGATE_SIGNING_SECRET_KEYRING"
                ),
            }
        }
        keys
    }

    fn unseal(&self, id: ConnectionId, known: &ConnectionRecord) -> Connection {
        let owner = id.to_string();
        let context = SealContext { owner: &owner, column: SIGNING_SECRET_COLUMN };
        Connection {
            id,
            app: known.app.clone(),
            enterprise: known.enterprise.clone(),
            team: known.team.clone(),
            status: known.status,
            preview_mode: known.preview_mode,
            version: known.version,
            team_key: known.team_key(),
            keys: self.unseal_keys(context, &known.signing_secrets),
            uses_app_keys: known.signing_secrets.is_empty(),
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
