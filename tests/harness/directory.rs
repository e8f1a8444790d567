//! Writes directory entries of many connections without Postgres.

use anyhow::Context as _;
use async_nats::jetstream;
use futures_util::{TryStreamExt, stream};
use shared::{
    directory::{
        ConnectionRecord, DirectoryEntry, SIGNING_SECRET_COLUMN, SealedSigningSecret, TeamEntry,
        team_key,
    },
    domain::{ConnectionId, ConnectionStatus},
    secrets::{KeyRing, SealContext, Secret},
    stream::DIRECTORY_BUCKET,
};

/// Concurrent writes to the bucket.
const AT_ONCE: usize = 256;

/// A connection of a workspace.
#[derive(Debug)]
pub struct NewEntry<'a> {
    /// Id.
    pub id: ConnectionId,
    /// Slack app.
    pub app: &'a str,
    /// Workspace.
    pub team: &'a str,
    /// Signing secret.
    pub secret: &'a str,
}

/// Writes active connections to the directory.
///
/// # Errors
/// If an id is malformed, or NATS rejects an entry.
pub async fn write<'a>(
    js: &jetstream::Context,
    ring: &KeyRing,
    connections: impl IntoIterator<Item = NewEntry<'a>>,
) -> anyhow::Result<()> {
    let bucket = js.get_key_value(DIRECTORY_BUCKET).await?;
    let mut entries = Vec::new();
    for new in connections {
        let id = new.id.to_string();
        let context = SealContext { owner: &id, column: SIGNING_SECRET_COLUMN };
        let sealed = ring.seal_secret(context, &Secret::new(new.secret.to_owned())?)?;
        let (app, team) = (new.app.parse()?, new.team.parse()?);
        let routed = TeamEntry { version: 1, connection: Some(new.id) };
        entries.push((team_key(&app, None, Some(&team)), serde_json::to_vec(&routed)?));
        let known = DirectoryEntry::Known(ConnectionRecord {
            version: 1,
            status: ConnectionStatus::Active,
            app,
            enterprise: None,
            team: Some(team),
            preview_mode: false,
            signing_secrets: vec![SealedSigningSecret { sealed }],
        });
        entries.push((id, serde_json::to_vec(&known)?));
    }
    stream::iter(entries.into_iter().map(Ok))
        .try_for_each_concurrent(AT_ONCE, async |(key, value)| {
            bucket.put(key, value.into()).await.map(drop)
        })
        .await
        .context("failed to write the directory")
}
