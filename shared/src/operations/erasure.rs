//! Export and erasure: of a person in a workspace, and of an organization.

use super::{OperationError, Operations, Result, agents::owns_apps, directory::failed};
use crate::{
    domain::{ConnectionId, OrgId, TeamId, UserId},
    store::{ErasedRows, ExportPosition, Store},
    stream::{self, Partition},
};
use async_nats::jetstream;
use futures_util::TryStreamExt;
use serde::Serialize;
use serde_json::Value;

/// Result of the erasure of a person.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct ErasedPerson {
    /// Rows in Postgres.
    #[serde(flatten)]
    pub rows: ErasedRows,
    /// Webhooks of the stream that were overwritten.
    pub webhooks: u64,
    /// Webhooks that name the person, and that intake has not committed.
    pub open_webhooks: u64,
}

impl ErasedPerson {
    /// Returns whether nothing of the person is left.
    pub fn is_complete(&self) -> bool {
        self.rows.open_deliveries + self.rows.open_messages == 0 && self.open_webhooks == 0
    }
}

/// Webhooks of a connection that were overwritten in the stream, and those that wait for intake.
#[derive(Debug, Clone, Copy, Default)]
struct ErasedWebhooks {
    erased: u64,
    open: u64,
}

impl Operations {
    /// Begins the export of an organization.
    pub async fn begin_export(&self, org: &OrgId) -> Result<()> {
        self.require_org(org, || format!("organization {org}"))?;
        if self.store.organizations(Some(org), None, 1).await?.is_empty() {
            return Err(OperationError::NotFound(format!("organization {org}")));
        }
        Ok(self.store.begin_export(&self.actor, org).await?)
    }

    /// Returns a page of an export, and the next position.
    pub async fn export_page(
        &self,
        org: &OrgId,
        at: &ExportPosition,
    ) -> Result<(Vec<Value>, Option<ExportPosition>)> {
        self.require_org(org, || format!("organization {org}"))?;
        Ok(self.store.export_page(org, at).await?)
    }

    /// Erases a person of a workspace from Postgres and from the stream, where each webhook that
    /// names the person is overwritten. While something is open the rows stay, and the erasure has
    /// to be repeated.
    pub async fn erase_person(
        &self,
        js: &jetstream::Context,
        team: &TeamId,
        user: &UserId,
    ) -> Result<ErasedPerson> {
        self.require_all_orgs()?;
        let mut result = ErasedPerson::default();
        for connection in self.store.team_connections(team).await? {
            let of = erase_webhooks(&self.store, js, connection, Some(user.as_str())).await?;
            result.webhooks += of.erased;
            result.open_webhooks += of.open;
        }
        result.rows = self.store.erase_person(&self.actor, team, user).await?;
        Ok(result)
    }

    /// Erases an organization with its connections, whose webhooks are overwritten in the stream,
    /// and what the audit log tells of it beside ids of it, actions and times. Returns the number
    /// of connections. Repeatable after an interruption.
    pub async fn erase_organization(&self, js: &jetstream::Context, org: &OrgId) -> Result<usize> {
        self.require_all_orgs()?;
        // Before anything is erased: an organization with apps can't be deleted.
        match self.store.count_apps_of(org).await? {
            0 => {}
            apps => return Err(owns_apps(org, apps)),
        }
        let connections = self.store.organization_connections(org).await?;
        for &connection in &connections {
            self.set_connection_enabled(js, connection, false).await.or_else(
                |error| match error {
                    // A revoked one accepts nothing either.
                    OperationError::Conflict(_) => Ok(crate::domain::ConnectionStatus::Revoked),
                    error => Err(error),
                },
            )?;
            erase_webhooks(&self.store, js, connection, None).await?;
            self.delete_connection(js, connection).await?;
            self.store.erase_link_code_attempts(connection).await?;
        }
        match self.delete_organization(org).await {
            Ok(()) => {}
            // An interrupted erasure has deleted it.
            Err(OperationError::NotFound(_)) if connections.is_empty() => {}
            Err(error) => return Err(error),
        }
        self.store.erase_organization_history(&self.actor, org).await?;
        Ok(connections.len())
    }
}

/// Overwrites the committed webhooks of a connection in the stream: all, or those with a word.
///
/// A purge only forgets where messages are. `ledger verify` subtracts what is recorded here.
async fn erase_webhooks(
    store: &Store,
    js: &jetstream::Context,
    connection: ConnectionId,
    word: Option<&str>,
) -> Result<ErasedWebhooks> {
    let webhooks = js.get_stream(stream::STREAM).await.map_err(failed)?;
    let of_connection = format!("slack.in.*.{connection}");
    let mut subjects = webhooks.info_with_subjects(&of_connection).await.map_err(failed)?;
    let mut partitions: Vec<Partition> = Vec::new();
    while let Some((subject, _)) = subjects.try_next().await.map_err(failed)? {
        partitions.extend(stream::parse_subject(&subject).map(|(partition, _)| partition));
    }
    let mut result = ErasedWebhooks::default();
    for partition in partitions {
        let (removal, cursor) = store.record_connection_removal(partition, connection).await?;
        let subject = stream::subject(partition, connection);
        let (mut next, mut erased) = (1, 0);
        // The error of the last step is that there is no further message.
        while let Ok(message) = webhooks.get_first_raw_message_by_subject(&subject, next).await {
            next = message.sequence + 1;
            if word.is_some_and(|word| !holds_word(&message.payload, word)) {
                continue;
            }
            if message.sequence > cursor {
                result.open += 1;
                continue;
            }
            webhooks.delete_message(message.sequence).await.map_err(failed)?;
            erased += 1;
        }
        store.record_removed(removal, erased).await?;
        result.erased += erased;
    }
    Ok(result)
}

/// Returns whether bytes hold a word: an id that is no part of a longer one.
fn holds_word(bytes: &[u8], word: &str) -> bool {
    let is_part = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let found = |at: usize| {
        let before = at.checked_sub(1).and_then(|at| bytes.get(at));
        !is_part(before) && !is_part(bytes.get(at + word.len()))
    };
    // An encoded separator ends in a digit or letter: `%22U1`.
    let encoded =
        |at: usize| at >= 3 && bytes[at - 3] == b'%' && !is_part(bytes.get(at + word.len()));
    let mut places = bytes.windows(word.len().max(1)).enumerate();
    places.any(|(at, part)| part == word.as_bytes() && (found(at) || encoded(at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_whole_ids() {
        for text in ["U1", "user_id=U1&x", "{\"user\":\"U1\"}", "<@U1> hi", "payload=%22U1%22"] {
            assert!(holds_word(text.as_bytes(), "U1"), "{text}");
        }
        for text in ["", "U", "U12", "AU1", "user=U10&", "%22U12"] {
            assert!(!holds_word(text.as_bytes(), "U1"), "{text}");
        }
    }
}
