//! In-memory cache of the directory bucket.
//!
//! Entries may be applied in any order and repeatedly: the newest version wins. An entry that fails
//! to decode is logged and skipped.

use super::SigningKey;
use shared::{
    directory::{Entry, Known, SIGNING_SECRET_COLUMN, TeamEntry},
    secrets::{KeyRing, Place},
    types::{AppId, ConnectionId, Status},
};
use std::{
    collections::HashMap,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tracing::warn;

/// Connection with unsealed signing secrets.
#[derive(Debug)]
pub struct Connection {
    /// Id of the connection.
    pub id: ConnectionId,
    /// Slack app of the connection.
    pub app: AppId,
    /// Status, which decides whether webhooks are accepted.
    pub status: Status,
    /// True for the app's fallback connection on the shared route.
    pub preview_mode: bool,
    pub(super) version: i64,
    pub(super) team_key: String,
    keys: Vec<(SigningKey, Option<SystemTime>)>,
}

impl Connection {
    /// Returns the signing keys that are valid at `now`, newest first.
    pub fn keys(&self, now: SystemTime) -> impl Iterator<Item = &SigningKey> {
        let valid = move |until: Option<SystemTime>| until.is_none_or(|until| now < until);
        self.keys.iter().filter(move |(_, until)| valid(*until)).map(|(key, _)| key)
    }
}

/// Cache of the whole bucket. Its lock is held for single reads and writes only.
pub(super) struct Cache {
    keyring: KeyRing,
    entries: RwLock<Entries>,
}

#[derive(Default)]
struct Entries {
    connections: HashMap<ConnectionId, CachedConnection>,
    teams: HashMap<String, TeamEntry>,
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

    /// Applies an entry of the bucket, unless the cache has a newer version.
    pub fn apply(&self, key: &str, value: &[u8]) {
        if key.starts_with("team.") {
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
        let new = match serde_json::from_slice::<Entry>(value) {
            Ok(Entry::Known(known)) => CachedConnection::Present(Arc::new(self.unseal(id, &known))),
            Ok(Entry::Deleted { version }) => CachedConnection::Deleted { version },
            Err(error) => {
                warn!(key, %error, "failed to decode directory entry");
                return;
            }
        };
        let mut entries = self.write();
        if entries.connections.get(&id).is_none_or(|cached| cached.version() < new.version()) {
            entries.connections.insert(id, new);
        }
    }

    fn apply_team(&self, key: &str, team: TeamEntry) {
        let mut entries = self.write();
        if entries.teams.get(key).is_none_or(|cached| cached.version < team.version) {
            entries.teams.insert(key.to_owned(), team);
        }
    }

    fn unseal(&self, id: ConnectionId, known: &Known) -> Connection {
        let owner = id.to_string();
        let place = Place { owner: &owner, column: SIGNING_SECRET_COLUMN };
        let mut keys = Vec::with_capacity(known.signing_secrets.len());
        for secret in &known.signing_secrets {
            match self.keyring.open_secret(place, &secret.sealed) {
                Ok(clear) => {
                    let until = secret.until_ms.map(|ms| UNIX_EPOCH + Duration::from_millis(ms));
                    keys.push((SigningKey::new(&clear), until));
                }
                // The connection stays in the cache; its webhooks get 401.
                Err(error) => warn!(
                    connection = %id,
                    %error,
                    "failed to unseal signing secret; check TIDEGATE_SIGNING_SECRET_KEYRING"
                ),
            }
        }
        Connection {
            id,
            app: known.app.clone(),
            status: known.status,
            preview_mode: known.preview_mode,
            version: known.version,
            team_key: known.team_key(),
            keys,
        }
    }

    fn read(&self) -> RwLockReadGuard<'_, Entries> {
        self.entries.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Entries> {
        self.entries.write().unwrap_or_else(PoisonError::into_inner)
    }
}
