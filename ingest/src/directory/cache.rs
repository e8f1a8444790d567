//! What ingest holds in memory of the bucket.
//!
//! In: keys and values of the bucket, in any order and as often as one likes: the newer version stays. Out: a
//! connection ready to verify with. A value that can't be read is left out, and said so.

use crate::webhook::signature::SigningKey;
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

/// A connection, ready to verify with.
#[derive(Debug)]
pub struct Connection {
    /// Its id.
    pub id: ConnectionId,
    /// Its Slack app.
    pub app: AppId,
    /// Where it is in its life.
    pub status: Status,
    /// Takes what the shared route finds no other connection for.
    pub preview_mode: bool,
    pub(super) version: i64,
    pub(super) team_key: String,
    keys: Vec<(SigningKey, Option<SystemTime>)>,
}

impl Connection {
    /// The secrets that are good at this time, newest first.
    pub fn keys(&self, now: SystemTime) -> impl Iterator<Item = &SigningKey> {
        let good = move |until: Option<SystemTime>| until.is_none_or(|until| now < until);
        self.keys.iter().filter(move |(_, until)| good(*until)).map(|(key, _)| key)
    }
}

/// Everything of the bucket, behind a lock that is held for a look or a change.
pub(super) struct Memory {
    ring: KeyRing,
    content: RwLock<Content>,
}

#[derive(Default)]
struct Content {
    connections: HashMap<ConnectionId, Slot>,
    teams: HashMap<String, TeamEntry>,
}

enum Slot {
    Here(Arc<Connection>),
    Deleted(i64),
}

impl Slot {
    fn version(&self) -> i64 {
        match self {
            Slot::Here(connection) => connection.version,
            Slot::Deleted(version) => *version,
        }
    }
}

impl Memory {
    /// Empty. The ring opens signing secrets.
    pub fn new(ring: KeyRing) -> Self {
        Self { ring, content: RwLock::default() }
    }

    /// A connection: here, deleted (`Some(None)`), or nothing known.
    pub fn connection(&self, id: ConnectionId) -> Option<Option<Arc<Connection>>> {
        self.read().connections.get(&id).map(|slot| match slot {
            Slot::Here(connection) => Some(Arc::clone(connection)),
            Slot::Deleted(_) => None,
        })
    }

    /// A team's connection: known, known to be none (`Some(None)`), or nothing known.
    pub fn team(&self, key: &str) -> Option<Option<ConnectionId>> {
        self.read().teams.get(key).map(|team| team.connection)
    }

    /// How many connections there are.
    pub fn connections(&self) -> usize {
        self.read().connections.values().filter(|slot| matches!(slot, Slot::Here(_))).count()
    }

    /// Takes a key of the bucket in, unless what is here is newer.
    pub fn apply(&self, key: &str, value: &[u8]) {
        if key.starts_with("team.") {
            match serde_json::from_slice(value) {
                Ok(team) => self.apply_team(key, team),
                Err(error) => warn!(key, %error, "a directory entry can't be read; it is left out"),
            }
            return;
        }
        let Ok(id) = key.parse::<ConnectionId>() else {
            warn!(key, "a key of the directory is not ours; it is left out");
            return;
        };
        let slot = match serde_json::from_slice::<Entry>(value) {
            Ok(Entry::Known(known)) => Slot::Here(Arc::new(self.unseal(id, &known))),
            Ok(Entry::Deleted { version }) => Slot::Deleted(version),
            Err(error) => {
                warn!(connection = %id, %error, "a directory entry can't be read; it is left out");
                return;
            }
        };
        let mut content = self.write();
        if content.connections.get(&id).is_none_or(|here| here.version() < slot.version()) {
            content.connections.insert(id, slot);
        }
    }

    fn apply_team(&self, key: &str, team: TeamEntry) {
        let mut content = self.write();
        if content.teams.get(key).is_none_or(|here| here.version < team.version) {
            content.teams.insert(key.to_owned(), team);
        }
    }

    fn unseal(&self, id: ConnectionId, known: &Known) -> Connection {
        let owner = id.to_string();
        let place = Place { owner: &owner, column: SIGNING_SECRET_COLUMN };
        let mut keys = Vec::with_capacity(known.signing_secrets.len());
        for secret in &known.signing_secrets {
            match self.ring.open_secret(place, &secret.sealed) {
                Ok(clear) => {
                    let until = secret.until_ms.map(|ms| UNIX_EPOCH + Duration::from_millis(ms));
                    keys.push((SigningKey::new(&clear), until));
                }
                // The connection stays: what can't be verified is answered 401, and here is why.
                Err(error) => {
                    warn!(connection = %id, %error, "a signing secret does not open (TIDEGATE_SIGNING_SECRET_KEYRING)");
                }
            }
        }
        let Known { status, preview_mode, version, .. } = *known;
        let (app, team_key) = (known.app.clone(), known.team_key());
        Connection { id, app, status, preview_mode, version, team_key, keys }
    }

    fn read(&self) -> RwLockReadGuard<'_, Content> {
        self.content.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Content> {
        self.content.write().unwrap_or_else(PoisonError::into_inner)
    }
}
