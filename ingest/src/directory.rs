//! Which connection a webhook is for, from memory.
//!
//! In: the bucket `connections`, followed from its beginning. Out: a connection by id, or by the keys of the
//! shared route. Complete before the first webhook is taken. What is not in memory is read from the bucket
//! before it is said not to exist: it may have been made a moment ago. That costs a read, so those reads
//! are bounded in number, and an answer of "no" is remembered for up to 2 s; made-up ids cost nothing much.
//! Postgres is not asked, and not needed.

use crate::{classify::Routing, verify::SigningKey};
use async_nats::jetstream::{self, kv};
use shared::{
    directory::{Entry, Known, SIGNING_SECRET_COLUMN, TeamEntry, team_key},
    follow::{Follow, Followed},
    secrets::{KeyRing, Place},
    stream::{DIRECTORY_BUCKET, INGEST_TTL, INGESTS_BUCKET},
    types::{AppId, ConnectionId, Status},
};
use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError, RwLock},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{OnceCell, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// Reads of the bucket at once, at most.
const READS_AT_ONCE: usize = 64;
/// Reads of the bucket in a second, at most.
const READS_PER_SECOND: u32 = 500;
/// One read.
const READ_TIMEOUT: Duration = Duration::from_secs(1);
/// "There is none" is believed for one to two of these.
const MISS_AGE: Duration = Duration::from_secs(1);
/// Ids remembered as unknown in one of these, at most.
const MISSES_MAX: usize = 20_000;
/// A connection whose signature failed is read again at most this often.
const REREAD_EVERY: Duration = Duration::from_secs(1);
/// How often an ingest says how far it is, at least.
const REPORT_EVERY: Duration = Duration::from_secs(1);
const _: () = assert!(REPORT_EVERY.as_millis() * 3 < INGEST_TTL.as_millis());

/// All connections, as ingest knows them. Cheap to clone.
#[derive(Clone)]
pub struct Directory(Arc<Inner>);

struct Inner {
    ring: KeyRing,
    js: jetstream::Context,
    /// Told to others when we report how far we are.
    name: String,
    buckets: OnceCell<Buckets>,
    memory: RwLock<Memory>,
    applied: watch::Sender<Option<u64>>,
    reads: Semaphore,
    bounds: Mutex<Bounds>,
}

struct Buckets {
    connections: kv::Store,
    ingests: kv::Store,
}

#[derive(Default)]
struct Memory {
    connections: HashMap<ConnectionId, Slot>,
    teams: HashMap<String, TeamEntry>,
    stream_created_ns: Option<i128>,
}

enum Slot {
    Here(Arc<Connection>),
    Deleted(i64),
}

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
    version: i64,
    keys: Vec<(SigningKey, Option<SystemTime>)>,
}

impl Connection {
    /// The secrets that are good at this time, newest first.
    pub fn keys(&self, now: SystemTime) -> impl Iterator<Item = &SigningKey> {
        self.keys
            .iter()
            .filter(move |(_, until)| until.is_none_or(|until| now < until))
            .map(|(key, _)| key)
    }
}

/// The bucket could not be asked, so nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the directory could not be read")]
pub struct Away;

impl Directory {
    /// An empty directory, of an ingest with a random name. [`Directory::follow`] fills it.
    pub fn new(js: jetstream::Context, ring: KeyRing) -> Self {
        let name =
            format!("{:016x}", std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0));
        Self(Arc::new(Inner {
            js,
            ring,
            name,
            buckets: OnceCell::new(),
            memory: RwLock::default(),
            applied: watch::Sender::new(None),
            reads: Semaphore::new(READS_AT_ONCE),
            bounds: Mutex::new(Bounds::new(Instant::now())),
        }))
    }

    /// Waits for the first pass.
    pub async fn completed(&self) {
        let mut applied = self.0.applied.subscribe();
        let _ = applied.wait_for(Option::is_some).await; // the sender is in `self`
    }

    /// Whether the first pass is complete.
    pub fn is_complete(&self) -> bool {
        self.applied().is_some()
    }

    /// How far it was read; `None` before the first pass is complete.
    pub fn applied(&self) -> Option<u64> {
        *self.0.applied.borrow()
    }

    /// Connections in it.
    pub fn len(&self) -> usize {
        self.0.memory().connections.values().filter(|slot| matches!(slot, Slot::Here(_))).count()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// This ingest's name among the others.
    pub fn ingest(&self) -> &str {
        &self.0.name
    }

    /// A connection by id. `None`: there is none, as sure as can be.
    pub async fn find(&self, id: ConnectionId) -> Result<Option<Arc<Connection>>, Away> {
        match self.0.recall(id) {
            Some(known) => Ok(known),
            None => self.read_connection(id).await,
        }
    }

    /// The connection of a webhook of the shared route: its installation's, else the app's preview
    /// connection, else none. Never another tenant's.
    pub async fn route(&self, routing: &Routing) -> Result<Option<Arc<Connection>>, Away> {
        let (app, enterprise, team) =
            (&routing.app, routing.enterprise.as_ref(), routing.team.as_ref());
        // A workspace may be known with its organisation or without; an organisation-wide install has no team.
        let mut keys = vec![team_key(app, enterprise, team)];
        if enterprise.is_some() && team.is_some() {
            keys.push(team_key(app, None, team));
            keys.push(team_key(app, enterprise, None));
        }
        for key in keys {
            if let Some(found) = self.find_team(&key).await? {
                return Ok(Some(found));
            }
        }
        self.preview(app).await
    }

    async fn preview(&self, app: &AppId) -> Result<Option<Arc<Connection>>, Away> {
        let found = self.find_team(&team_key(app, None, None)).await?;
        Ok(found.filter(|connection| connection.preview_mode))
    }

    async fn find_team(&self, key: &str) -> Result<Option<Arc<Connection>>, Away> {
        let known = self.0.memory().teams.get(key).map(|team| team.connection);
        let connection = match known {
            Some(connection) => connection,
            None => self.read_team(key).await?,
        };
        match connection {
            Some(id) => self.find(id).await,
            None => Ok(None),
        }
    }

    /// A connection as the bucket has it now, when a signature failed: its secret may just have been changed.
    /// `None` when that would be too often, or nothing is newer.
    pub async fn reread(&self, known: &Connection) -> Option<Arc<Connection>> {
        if !self.0.bounds().may_reread(known.id, Instant::now()) {
            return None;
        }
        let newer = self.read_connection(known.id).await.ok()??;
        (newer.version > known.version).then_some(newer)
    }

    async fn read_connection(&self, id: ConnectionId) -> Result<Option<Arc<Connection>>, Away> {
        let key = id.to_string();
        if let Some(value) = self.read(&key).await? {
            self.0.apply(&key, &value);
        }
        Ok(self.0.recall(id).flatten())
    }

    async fn read_team(&self, key: &str) -> Result<Option<ConnectionId>, Away> {
        if let Some(value) = self.read(key).await? {
            self.0.apply(key, &value);
        }
        Ok(self.0.memory().teams.get(key).and_then(|team| team.connection))
    }

    /// One bounded read. `None`: the bucket has no such key, now or within the last 2 s.
    async fn read(&self, key: &str) -> Result<Option<bytes::Bytes>, Away> {
        match self.0.bounds().may_read(key, Instant::now()) {
            MayRead::Yes => {}
            MayRead::KnownMiss => return Ok(None),
            MayRead::TooMany => return Err(Away),
        }
        let _permit = self.0.reads.try_acquire().map_err(|_| Away)?;
        let read = async { self.0.buckets().await?.connections.get(key).await.map_err(|_| Away) };
        let value = tokio::time::timeout(READ_TIMEOUT, read).await.map_err(|_| Away)??;
        if value.is_none() {
            self.0.bounds().remember_miss(key);
        }
        Ok(value)
    }

    /// Follows the bucket until told to stop.
    pub async fn follow(self, stop: CancellationToken) {
        let subjects = format!("$KV.{DIRECTORY_BUCKET}.>");
        let prefix = format!("$KV.{DIRECTORY_BUCKET}.");
        let reader = format!("directory-{}", self.0.name);
        let mut follow =
            Follow::new(self.0.js.clone(), &format!("KV_{DIRECTORY_BUCKET}"), subjects, reader, 1);
        loop {
            let followed = tokio::select! {
                _ = stop.cancelled() => return,
                followed = follow.next() => followed,
            };
            match followed {
                Followed::Opened(state) => {
                    if self.0.is_another_stream(state.created_ns) {
                        warn!("the directory was made anew; reading it from its beginning");
                        follow.restart_at(1);
                    }
                }
                Followed::Message(_, message) => {
                    if let Some(key) = message.subject.strip_prefix(&prefix) {
                        self.0.apply(key, &message.payload);
                    }
                }
                Followed::CaughtUp(revision) => {
                    if self.0.applied.send_replace(Some(revision)).is_none() {
                        info!(
                            connections = self.0.memory().connections.len(),
                            "the directory is complete"
                        );
                    }
                }
            }
        }
    }

    /// Says how far this ingest is, now and then and whenever it gets further, until told to stop.
    pub async fn report(self, stop: CancellationToken) {
        let mut applied = self.0.applied.subscribe();
        loop {
            let revision = *applied.borrow_and_update();
            if let Some(revision) = revision {
                let text = revision.to_string().into();
                let said = async {
                    self.0.buckets().await?.ingests.put(&self.0.name, text).await.map_err(|_| Away)
                };
                let _ = tokio::time::timeout(READ_TIMEOUT, said).await; // one that failed is said again in a second
            }
            tokio::select! {
                _ = stop.cancelled() => break,
                _ = applied.changed() => {}
                _ = tokio::time::sleep(REPORT_EVERY) => {}
            }
        }
        let gone =
            async { self.0.buckets().await?.ingests.delete(&self.0.name).await.map_err(|_| Away) };
        let _ = tokio::time::timeout(READ_TIMEOUT, gone).await;
    }
}

impl Inner {
    /// The buckets, which `tidegate migrate` makes; opened when first needed.
    async fn buckets(&self) -> Result<&Buckets, Away> {
        let open = async {
            let connections = self.js.get_key_value(DIRECTORY_BUCKET).await.map_err(|_| Away)?;
            let ingests = self.js.get_key_value(INGESTS_BUCKET).await.map_err(|_| Away)?;
            Ok(Buckets { connections, ingests })
        };
        self.buckets.get_or_try_init(|| open).await
    }

    fn memory(&self) -> std::sync::RwLockReadGuard<'_, Memory> {
        self.memory.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn bounds(&self) -> std::sync::MutexGuard<'_, Bounds> {
        self.bounds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What memory says: here, deleted (`Some(None)`), or nothing.
    fn recall(&self, id: ConnectionId) -> Option<Option<Arc<Connection>>> {
        self.memory().connections.get(&id).map(|slot| match slot {
            Slot::Here(connection) => Some(Arc::clone(connection)),
            Slot::Deleted(_) => None,
        })
    }

    /// Puts a key of the bucket into memory, unless what is there is newer.
    fn apply(&self, key: &str, value: &[u8]) {
        if key.starts_with("team.") {
            match serde_json::from_slice::<TeamEntry>(value) {
                Ok(team) => {
                    let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
                    let newer =
                        memory.teams.get(key).is_none_or(|there| there.version < team.version);
                    if newer {
                        memory.teams.insert(key.to_owned(), team);
                    }
                }
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
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        let newer =
            memory.connections.get(&id).is_none_or(|there| there.version() < slot.version());
        if newer {
            memory.connections.insert(id, slot);
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
                // Not left out: a connection that can't be verified answers 401, and says here why.
                Err(error) => {
                    warn!(connection = %id, %error, "a signing secret does not open (TIDEGATE_SIGNING_KEYS)")
                }
            }
        }
        let Known { status, preview_mode, version, .. } = *known;
        Connection { id, app: known.app.clone(), status, preview_mode, version, keys }
    }

    fn is_another_stream(&self, created_ns: i128) -> bool {
        let mut memory = self.memory.write().unwrap_or_else(PoisonError::into_inner);
        let before = memory.stream_created_ns.replace(created_ns);
        let another = before.is_some_and(|before| before != created_ns);
        if another {
            memory.connections.clear();
            memory.teams.clear();
        }
        another
    }
}

impl Slot {
    fn version(&self) -> i64 {
        match self {
            Slot::Here(connection) => connection.version,
            Slot::Deleted(version) => *version,
        }
    }
}

/// What keeps reads of the bucket from becoming many.
struct Bounds {
    window: Instant,
    reads: u32,
    misses: HashSet<String>,
    older_misses: HashSet<String>,
    rereads: HashMap<ConnectionId, Instant>,
}

#[derive(Debug, PartialEq, Eq)]
enum MayRead {
    Yes,
    KnownMiss,
    TooMany,
}

impl Bounds {
    fn new(now: Instant) -> Self {
        let (misses, older_misses) = (HashSet::new(), HashSet::new());
        Self { window: now, reads: 0, misses, older_misses, rereads: HashMap::new() }
    }

    fn may_read(&mut self, key: &str, now: Instant) -> MayRead {
        let age = now.duration_since(self.window);
        if age >= MISS_AGE {
            self.older_misses = std::mem::take(&mut self.misses);
            if age >= 2 * MISS_AGE {
                self.older_misses.clear();
            }
            self.window = now;
            self.reads = 0;
        }
        if self.misses.contains(key) || self.older_misses.contains(key) {
            return MayRead::KnownMiss;
        }
        if self.reads == READS_PER_SECOND {
            return MayRead::TooMany;
        }
        self.reads += 1;
        MayRead::Yes
    }

    fn remember_miss(&mut self, key: &str) {
        if self.misses.len() < MISSES_MAX {
            self.misses.insert(key.to_owned());
        }
    }

    fn may_reread(&mut self, id: ConnectionId, now: Instant) -> bool {
        self.rereads.retain(|_, at| now.duration_since(*at) < REREAD_EVERY);
        if self.rereads.len() >= MISSES_MAX || self.rereads.contains_key(&id) {
            return false;
        }
        self.rereads.insert(id, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_up_ids_cost_a_bounded_number_of_reads_and_of_memory() {
        let start = Instant::now();
        let mut bounds = Bounds::new(start);
        let mut reads = 0;
        for n in 0..100_000 {
            let now = start + Duration::from_micros(n * 100); // 10,000 a second for 10 s
            if bounds.may_read(&format!("{n}"), now) == MayRead::Yes {
                bounds.remember_miss(&format!("{n}"));
                reads += 1;
            }
        }
        assert!(reads <= 10 * READS_PER_SECOND, "{reads}");
        assert!(bounds.misses.len() + bounds.older_misses.len() <= 2 * MISSES_MAX);
    }

    #[test]
    fn a_miss_is_believed_for_at_most_two_seconds() {
        let start = Instant::now();
        let mut bounds = Bounds::new(start);
        assert_eq!(bounds.may_read("x", start), MayRead::Yes);
        bounds.remember_miss("x");
        assert_eq!(bounds.may_read("x", start + MISS_AGE / 2), MayRead::KnownMiss);
        assert_eq!(bounds.may_read("x", start + MISS_AGE * 3 / 2), MayRead::KnownMiss);
        assert_eq!(bounds.may_read("x", start + MISS_AGE * 3), MayRead::Yes);
    }

    #[test]
    fn a_connection_is_reread_at_most_once_a_second() {
        let start = Instant::now();
        let mut bounds = Bounds::new(start);
        let id = format!("{:032x}", 1).parse().expect("an id");
        assert!(bounds.may_reread(id, start));
        assert!(!bounds.may_reread(id, start + REREAD_EVERY / 2));
        assert!(bounds.may_reread(id, start + REREAD_EVERY));
    }
}
