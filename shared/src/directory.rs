//! Directory: connections as a key-value bucket in NATS, projected from Postgres.
//!
//! Workers and the command line write entries. Every ingest follows the bucket `connections`. Keys
//! are connection ids, and for the shared route `app.<app>`, `team.<app>.<team>`,
//! `enterprise.<app>.<enterprise>` and `preview.<app>`. Writes use compare-and-swap and require a
//! newer version, so that writers may race and repeat. Signing secrets are sealed. Tokens are never
//! in the directory. Deleted connections and apps, and teams without a connection, leave a
//! tombstone, so that a late writer with an older version can't restore them. NATS removes a
//! tombstone [`TOMBSTONE_TTL`] after it was written. No process can then have an older version,
//! unless it was stopped for that long; the directory sync writes another tombstone for what such a
//! process restores.
//!
//! Writers commit to Postgres first and project after the commit. The directory sync of the workers
//! repairs missed projections.

mod entries;

pub use entries::{
    AppEntry, ConnectionRecord, DirectoryEntry, SealedSigningSecret, TeamEntry, app_key,
    app_of_key, team_key,
};

use crate::{
    domain::{AppId, ConnectionId},
    stream::{DIRECTORY_BUCKET, INGESTS_BUCKET},
};
use async_nats::jetstream::{
    self, kv,
    message::PublishMessage,
    stream::{LastRawMessageError, LastRawMessageErrorKind},
};
use bytes::Bytes;
use entries::Entry;
use futures_util::TryStreamExt;
use serde::Deserialize;
use std::time::Duration;

/// Column that a signing secret is sealed for. The directory contains the text of the row.
pub const SIGNING_SECRET_COLUMN: &str = "connections.signing_secret";

/// Column that a signing secret of an app is sealed for.
pub const APP_SIGNING_SECRET_COLUMN: &str = "apps.signing_secret";

/// Time after which NATS removes a tombstone. Those in Postgres are kept as long.
pub const TOMBSTONE_TTL: Duration = Duration::from_secs(30 * 24 * 3600);

/// Writer of the directory.
#[derive(Clone)]
pub struct Directory {
    js: jetstream::Context,
    bucket: kv::Store,
    ingests: kv::Store,
}

/// Failure to read, write or parse the directory.
#[derive(Debug, thiserror::Error)]
#[error("failed to {action}")]
pub struct DirectoryError {
    action: &'static str,
    source: Box<dyn std::error::Error + Send + Sync>,
}

fn failed<E: Into<Box<dyn std::error::Error + Send + Sync>>>(
    action: &'static str,
) -> impl FnOnce(E) -> DirectoryError {
    move |error| DirectoryError { action, source: error.into() }
}

/// Returns the keys of a bucket that match a pattern, including deleted keys.
///
/// The client's `keys` creates a consumer per call. Servers limit the number of consumers, and a
/// user with permission to create them can make the server publish messages.
async fn keys(bucket: &kv::Store, pattern: &str) -> Result<Vec<String>, BoxError> {
    let prefix = format!("$KV.{}.", bucket.name);
    let subjects = bucket.stream.info_with_subjects(format!("{prefix}{pattern}")).await?;
    let subjects: Vec<(String, usize)> = subjects.try_collect().await?;
    let key = |(subject, _): (String, _)| subject.strip_prefix(&prefix).map(str::to_owned);
    Ok(subjects.into_iter().filter_map(key).collect())
}

/// Maximum number of compare-and-swap attempts against concurrent writers of a key.
const SWAPS_MAX: u32 = 16;

impl Directory {
    /// Opens the buckets, which `tidegate migrate` creates.
    pub async fn open(js: &jetstream::Context) -> Result<Self, DirectoryError> {
        let bucket =
            js.get_key_value(DIRECTORY_BUCKET).await.map_err(failed("open bucket connections"))?;
        let ingests =
            js.get_key_value(INGESTS_BUCKET).await.map_err(failed("open bucket ingests"))?;
        Ok(Self { js: js.clone(), bucket, ingests })
    }

    /// Writes the entries of a connection and its team, unless the bucket has the same or a newer
    /// version. Returns the revision of the bucket that includes the change.
    pub async fn project(
        &self,
        id: ConnectionId,
        entry: &DirectoryEntry,
    ) -> Result<u64, DirectoryError> {
        let version = entry.version();
        let before = self.entry(id).await?;
        let (new_key, old_key) =
            (entry.team_key(), before.as_ref().and_then(DirectoryEntry::team_key));
        // The entry under the id is written last: a crash before leaves the old entry, and the
        // projection is repeated.
        let mut revision = 0;
        if let Some(key) = &new_key {
            let routed = TeamEntry { version, connection: Some(id) };
            revision = self.write(key, &routed).await?;
        }
        if let Some(old_key) = old_key.filter(|old_key| Some(old_key) != new_key.as_ref()) {
            let current = self.read::<TeamEntry>(&old_key).await?;
            if current.is_some_and(|(team, _)| team.connection == Some(id)) {
                let unrouted = TeamEntry { version, connection: None };
                revision = revision.max(self.write(&old_key, &unrouted).await?);
            }
        }
        Ok(revision.max(self.write(&id.to_string(), entry).await?))
    }

    /// Writes the entry of an app, unless the bucket has the same or a newer version. Returns the
    /// revision of the bucket that includes the change.
    pub async fn project_app(&self, id: &AppId, entry: &AppEntry) -> Result<u64, DirectoryError> {
        self.write(&app_key(id), entry).await
    }

    /// Returns the apps whose entry is not a tombstone.
    pub async fn apps(&self) -> Result<Vec<AppId>, DirectoryError> {
        let keys = keys(&self.bucket, "app.*").await;
        let keys = keys.map_err(failed("list apps of the directory"))?;
        let mut known = Vec::new();
        for id in keys.iter().filter_map(|key| app_of_key(key)) {
            let entry = self.read::<AppEntry>(&app_key(&id)).await?;
            if entry.is_some_and(|(entry, _)| matches!(entry, AppEntry::Known { .. })) {
                known.push(id);
            }
        }
        Ok(known)
    }

    /// Returns the entry of a connection.
    pub async fn entry(&self, id: ConnectionId) -> Result<Option<DirectoryEntry>, DirectoryError> {
        Ok(self.read(&id.to_string()).await?.map(|(entry, _)| entry))
    }

    /// Returns the ids of all connections with an entry.
    pub async fn connections(&self) -> Result<Vec<ConnectionId>, DirectoryError> {
        // Connection ids are single tokens. Keys of teams and apps are not.
        let keys = keys(&self.bucket, "*").await;
        let keys = keys.map_err(failed("list connections of the directory"))?;
        Ok(keys.iter().filter_map(|key| key.parse().ok()).collect())
    }

    /// Returns creation time and last sequence of the bucket, which identify a recreated bucket.
    pub async fn identity(&self) -> Result<(i64, u64), DirectoryError> {
        let info = self.bucket.stream.get_info().await;
        let info = info.map_err(failed("query bucket connections"))?;
        Ok((info.created.unix_timestamp_nanos() as i64, info.state.last_sequence))
    }

    /// Waits until every live ingest has applied `revision`. After `within`, the error names the
    /// ingests that have not.
    pub async fn wait_until_applied(
        &self,
        revision: u64,
        within: Duration,
    ) -> Result<(), DirectoryTimeoutError> {
        let deadline = tokio::time::Instant::now() + within;
        loop {
            let behind = self.ingests_behind(revision).await?;
            if behind.is_empty() {
                return Ok(());
            }
            if tokio::time::Instant::now() >= deadline {
                return Err(DirectoryTimeoutError::Behind(behind));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns the names of the live ingests.
    pub async fn ingests(&self) -> Result<Vec<String>, DirectoryError> {
        keys(&self.ingests, "*").await.map_err(failed("list ingests"))
    }

    async fn ingests_behind(&self, revision: u64) -> Result<Vec<String>, DirectoryError> {
        let keys = keys(&self.ingests, "*").await.map_err(failed("list ingests"))?;
        let mut behind = Vec::new();
        for key in keys {
            // A replica that lags may miss an ingest that has just started.
            let value = read_from_leader(&self.ingests, &key).await;
            let value = value.map_err(failed("read an ingest's revision"))?;
            let applied =
                value.and_then(|(v, _)| std::str::from_utf8(&v).ok()?.parse::<u64>().ok());
            // An ingest whose key expired between listing and reading is gone.
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
        let read =
            read_from_leader(&self.bucket, key).await.map_err(failed("read a directory key"))?;
        let Some((value, revision)) = read else { return Ok(None) };
        let value = serde_json::from_slice(&value).map_err(failed("parse a directory entry"))?;
        Ok(Some((value, revision)))
    }

    async fn write<T: Entry>(&self, key: &str, value: &T) -> Result<u64, DirectoryError> {
        let bytes: Bytes =
            serde_json::to_vec(value).map_err(failed("serialize a directory entry"))?.into();
        let mut last: BoxError = "not attempted".into();
        for _ in 0..SWAPS_MAX {
            let expected = match self.read::<T>(key).await? {
                Some((current, revision)) if current.version() >= value.version() => {
                    return Ok(revision);
                }
                current => current.map_or(0, |(_, revision)| revision),
            };
            // The client's bucket has no update with a TTL, and its `create` reads from any replica
            // after a conflict.
            let mut message = PublishMessage::build()
                .payload(bytes.clone())
                .expected_last_subject_sequence(expected);
            if value.is_tombstone() {
                message = message.ttl(TOMBSTONE_TTL);
            }
            match self.publish(key, message).await {
                Ok(revision) => return Ok(revision),
                Err(error) => last = error,
            }
        }
        Err(DirectoryError { action: "write a directory entry", source: last })
    }

    async fn publish(&self, key: &str, message: PublishMessage) -> Result<u64, BoxError> {
        let subject = format!("{}{key}", self.bucket.prefix);
        Ok(self.js.send_publish(subject, message).await?.await?.sequence)
    }
}

/// Returns a key's value and revision from the leader. The client's own read uses any replica, and
/// a replica that lags misses keys that were just written.
pub async fn read_from_leader(
    bucket: &kv::Store,
    key: &str,
) -> Result<Option<(Bytes, u64)>, LastRawMessageError> {
    let subject = format!("{}{key}", bucket.prefix);
    match bucket.stream.get_last_raw_message_by_subject(&subject).await {
        // An empty value marks a deletion.
        Ok(message) if message.payload.is_empty() => Ok(None),
        Ok(message) => Ok(Some((message.payload, message.sequence))),
        Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error),
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Failure to wait for all ingests.
#[derive(Debug, thiserror::Error)]
pub enum DirectoryTimeoutError {
    /// Ingests that have not applied the change.
    #[error("the change is stored, but these ingests have not applied it yet: {}", .0.join(", "))]
    Behind(Vec<String>),
    /// Failure to read the directory.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
}
