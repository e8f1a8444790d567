//! What ingest knows of connections: a key-value bucket in NATS, projected from Postgres.
//!
//! In: a connection's row, as an [`Entry`]. Out: keys of the bucket `connections`, which every ingest follows.
//! Two sorts of keys: a connection's id, and `team.<app>.<enterprise or _>.<team or _>` for the shared
//! route. Both are written by compare-and-swap and only with a newer version, so writers may race and repeat
//! themselves. Signing secrets lie in it sealed; tokens never do. A deleted connection leaves a tombstone, so
//! that a late writer with an older version can't bring it back.
//!
//! Whoever changes a connection commits to Postgres first and projects after; a worker's sweep repairs what was
//! missed between the two.

use crate::{
    secrets::Sealed,
    stream::{DIRECTORY_BUCKET, INGESTS_BUCKET},
    types::{AppId, ConnectionId, EnterpriseId, Status, TeamId},
};
use async_nats::jetstream::{
    self, kv,
    stream::{LastRawMessageError, LastRawMessageErrorKind},
};
use bytes::Bytes;
use futures_util::TryStreamExt;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// The column that a signing secret is sealed for, here and in Postgres: the directory carries the row's text.
pub const SIGNING_SECRET_COLUMN: &str = "connections.signing_secret";

/// What the bucket holds under a connection's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "lowercase")]
pub enum Entry {
    /// A connection.
    Known(Known),
    /// There was one.
    Deleted {
        /// Newer than every version the connection had.
        version: i64,
    },
}

/// A connection, as far as ingest needs it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// The row's version: rises with every change.
    pub version: i64,
    /// Where it is in its life.
    pub status: Status,
    /// Its Slack app.
    pub app: AppId,
    /// Its Enterprise organisation, if it has one.
    pub enterprise: Option<EnterpriseId>,
    /// Its workspace; none on an organisation-wide install or for a preview connection.
    pub team: Option<TeamId>,
    /// Takes what the shared route finds no other connection for.
    pub preview_mode: bool,
    /// Secrets that Slack may sign with, newest first; two while one is being rotated.
    pub signing_secrets: Vec<SealedSigningSecret>,
}

/// A signing secret at rest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedSigningSecret {
    /// Sealed with the signing ring for [`SIGNING_SECRET_COLUMN`] of its connection.
    pub sealed: Sealed,
    /// When it stops being good, in milliseconds since 1970; never, if absent.
    pub until_ms: Option<u64>,
}

/// What the bucket holds under a team's key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeamEntry {
    /// The version of the connection that wrote it.
    pub version: i64,
    /// Who gets this team's webhooks; nobody any more, if absent.
    pub connection: Option<ConnectionId>,
}

impl Known {
    /// The key of its team on the shared route.
    pub fn team_key(&self) -> String {
        team_key(&self.app, self.enterprise.as_ref(), self.team.as_ref())
    }
}

impl Entry {
    /// The key of its team on the shared route; a deleted connection has none.
    pub fn team_key(&self) -> Option<String> {
        match self {
            Entry::Known(known) => Some(known.team_key()),
            Entry::Deleted { .. } => None,
        }
    }

    /// The version, of either.
    pub fn version(&self) -> i64 {
        match self {
            Entry::Known(known) => known.version,
            Entry::Deleted { version } => *version,
        }
    }
}

/// The key of a team on the shared route. Ids are checked, so the parts can't run into each other.
pub fn team_key(app: &AppId, enterprise: Option<&EnterpriseId>, team: Option<&TeamId>) -> String {
    let enterprise = enterprise.map_or("_", EnterpriseId::as_str);
    let team = team.map_or("_", TeamId::as_str);
    format!("team.{app}.{enterprise}.{team}")
}

/// The bucket, for those who write it.
#[derive(Clone)]
pub struct Directory {
    bucket: kv::Store,
    ingests: kv::Store,
}

/// The bucket could not be read or written, or holds what we can't read.
#[derive(Debug, thiserror::Error)]
#[error("directory: {what} failed")]
pub struct DirectoryError {
    what: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    what: &'static str,
) -> impl FnOnce(E) -> DirectoryError {
    move |error| DirectoryError { what, source: error.into() }
}

/// Compare-and-swap is tried this often against other writers of the same key.
const SWAPS_MAX: u32 = 16;

impl Directory {
    /// Opens the buckets, which `tidegate migrate` makes.
    pub async fn open(js: &jetstream::Context) -> Result<Self, DirectoryError> {
        let bucket = js
            .get_key_value(DIRECTORY_BUCKET)
            .await
            .map_err(failed("opening bucket connections"))?;
        let ingests =
            js.get_key_value(INGESTS_BUCKET).await.map_err(failed("opening bucket ingests"))?;
        Ok(Self { bucket, ingests })
    }

    /// Writes a connection's entry and its team's, unless what is there is as new. Gives the bucket's revision
    /// at which all of it is in force.
    pub async fn project(&self, id: ConnectionId, entry: &Entry) -> Result<u64, DirectoryError> {
        let version = entry.version();
        let before = self.entry(id).await?;
        let (new_key, old_key) = (entry.team_key(), before.as_ref().and_then(Entry::team_key));
        // The id's own entry comes last: whoever dies before it leaves the old one, and all of this is done again.
        let mut revision = 0;
        if let Some(key) = &new_key {
            let routed = TeamEntry { version, connection: Some(id) };
            revision = self.write(key, version, &routed, |team| team.version).await?;
        }
        if let Some(old_key) = old_key.filter(|old_key| Some(old_key) != new_key.as_ref()) {
            let there = self.read::<TeamEntry>(&old_key).await?;
            if there.is_some_and(|(team, _)| team.connection == Some(id)) {
                let nobody = TeamEntry { version, connection: None };
                let cleared = self.write(&old_key, version, &nobody, |team| team.version).await?;
                revision = revision.max(cleared);
            }
        }
        let own = self.write(&id.to_string(), version, entry, Entry::version).await?;
        Ok(revision.max(own))
    }

    /// A connection's entry, if it has one.
    pub async fn entry(&self, id: ConnectionId) -> Result<Option<Entry>, DirectoryError> {
        Ok(self.read(&id.to_string()).await?.map(|(entry, _)| entry))
    }

    /// Every connection that has an entry.
    pub async fn connections(&self) -> Result<Vec<ConnectionId>, DirectoryError> {
        let keys = self.bucket.keys().await.map_err(failed("listing connections"))?;
        let keys: Vec<String> = keys.try_collect().await.map_err(failed("listing connections"))?;
        Ok(keys.iter().filter_map(|key| key.parse().ok()).collect())
    }

    /// What tells this bucket from one made anew: when it was made, and how far it goes.
    pub async fn identity(&self) -> Result<(i64, u64), DirectoryError> {
        let info = self.bucket.stream.get_info().await;
        let info = info.map_err(failed("looking at bucket connections"))?;
        Ok((info.created.unix_timestamp_nanos() as i64, info.state.last_sequence))
    }

    /// Waits until every live ingest has applied `revision`, or names those that have not by the deadline.
    pub async fn applied_everywhere(
        &self,
        revision: u64,
        within: Duration,
    ) -> Result<(), DirectoryWait> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let behind = self.behind(revision).await?;
            if behind.is_empty() {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(DirectoryWait::Behind(behind));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn behind(&self, revision: u64) -> Result<Vec<String>, DirectoryError> {
        let keys = self.ingests.keys().await.map_err(failed("listing ingests"))?;
        let keys: Vec<String> = keys.try_collect().await.map_err(failed("listing ingests"))?;
        let mut behind = Vec::new();
        for key in keys {
            let value = self.ingests.get(&key).await.map_err(failed("reading an ingest"))?;
            let applied = value.and_then(|v| std::str::from_utf8(&v).ok()?.parse::<u64>().ok());
            // Expired between listing and reading: gone, so not behind.
            if applied.is_some_and(|applied| applied < revision) {
                behind.push(key);
            }
        }
        Ok(behind)
    }

    async fn read<T: for<'de> Deserialize<'de>>(
        &self,
        key: &str,
    ) -> Result<Option<(T, u64)>, DirectoryError> {
        let read = read_from_leader(&self.bucket, key).await.map_err(failed("reading a key"))?;
        let Some((value, revision)) = read else { return Ok(None) };
        let value = serde_json::from_slice(&value).map_err(failed("parsing an entry"))?;
        Ok(Some((value, revision)))
    }

    async fn write<T: Serialize + for<'de> Deserialize<'de>>(
        &self,
        key: &str,
        version: i64,
        value: &T,
        version_of: impl Fn(&T) -> i64,
    ) -> Result<u64, DirectoryError> {
        let bytes: bytes::Bytes =
            serde_json::to_vec(value).map_err(failed("writing an entry"))?.into();
        let mut last: Broken = "unreached".into();
        for _ in 0..SWAPS_MAX {
            let written = match self.read::<T>(key).await? {
                Some((there, revision)) if version_of(&there) >= version => return Ok(revision),
                Some((_, revision)) => {
                    self.bucket.update(key, bytes.clone(), revision).await.map_err(Broken::from)
                }
                // Not the client's `create`, which asks any replica what is there when somebody was faster.
                None => self.bucket.update(key, bytes.clone(), 0).await.map_err(Broken::from),
            };
            match written {
                Ok(revision) => return Ok(revision),
                Err(error) => last = error,
            }
        }
        Err(DirectoryError { what: "compare-and-swap", source: last })
    }
}

/// A key's value and revision, as the leader has it. The client's own read asks any replica, and one that lags
/// says that there is no such key a moment after it was written.
pub async fn read_from_leader(
    bucket: &kv::Store,
    key: &str,
) -> Result<Option<(Bytes, u64)>, LastRawMessageError> {
    let subject = format!("{}{key}", bucket.prefix);
    match bucket.stream.get_last_raw_message_by_subject(&subject).await {
        // An empty value is a deletion's marker.
        Ok(message) if message.payload.is_empty() => Ok(None),
        Ok(message) => Ok(Some((message.payload, message.sequence))),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error),
    }
}

type Broken = Box<dyn std::error::Error + Send + Sync>;

/// Not every ingest has a change yet, or nobody could say.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryWait {
    /// These have not.
    #[error("the change is stored, but these ingests have not applied it yet: {}", .0.join(", "))]
    Behind(Vec<String>),
    /// The bucket did not answer.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}
