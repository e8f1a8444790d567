//! Export of an organization, and erasure of an organization or a person in a workspace.

use super::{
    OperationError, Operations, Result,
    agents::owns_apps,
    directory::{self, failed},
};
use crate::{
    domain::{ConnectionId, OrgId, TeamId, UserId},
    store::{DeletedConnection, ErasedRows, ErasureTarget, ExportPosition, OpenErasure, Store},
    stream::{self, Partition},
};
use async_nats::jetstream;
use futures_util::TryStreamExt;
use serde::Serialize;
use serde_json::Value;
use std::time::Duration;

/// Interval at which an incomplete erasure is repeated.
pub const ERASURE_INTERVAL: Duration = Duration::from_secs(10);
/// Time after which workers continue an erasure that a command began.
const TAKEOVER_AFTER: Duration = Duration::from_secs(60);

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

    /// Requests the erasure of a person or an organization, which a worker carries out. Returns the
    /// id of the request, or of one that is already open.
    pub async fn request_erasure(&self, target: &ErasureTarget) -> Result<String> {
        self.request_erasure_after(target, Duration::ZERO).await
    }

    async fn request_erasure_after(
        &self,
        target: &ErasureTarget,
        due_after: Duration,
    ) -> Result<String> {
        match (target, &self.org) {
            (ErasureTarget::Organization(org), _) => {
                self.require_org(org, || format!("organization {org}"))?;
            }
            // A person of a workspace may have written to several organizations.
            (ErasureTarget::Person(team, user), Some(_)) => {
                return Err(OperationError::NotFound(format!("person {team}/{user}")));
            }
            (ErasureTarget::Person(..), None) => {}
        }
        // An interrupted erasure may have deleted the organization.
        if let Some(open) = self.store.reopen_erasure(target, due_after).await? {
            return Ok(open);
        }
        if let ErasureTarget::Organization(org) = target
            && self.store.organizations(Some(org), None, 1).await?.is_empty()
        {
            return Err(OperationError::NotFound(format!("organization {org}")));
        }
        // Before anything is erased: an organization with apps can't be deleted.
        if let ErasureTarget::Organization(org) = target {
            match self.store.count_apps_of(org).await? {
                0 => {}
                apps => return Err(owns_apps(org, apps)),
            }
        }
        let id = ConnectionId::random().map_err(crate::store::StoreError::from)?.to_string();
        match self.store.request_erasure(&self.actor, &id, target, due_after).await? {
            true => Ok(id),
            false => {
                let why = "the same erasure was requested concurrently; repeat the request";
                Err(OperationError::Conflict(why.into()))
            }
        }
    }

    /// Carries out an erasure as far as possible. An incomplete one is repeated later.
    pub async fn run_erasure(&self, js: &jetstream::Context, erasure: &OpenErasure) -> Result<()> {
        let id = &erasure.id;
        let erased = match &erasure.target {
            ErasureTarget::Person(team, user) => {
                self.run_person_erasure(js, id, team, user).await.map(drop)
            }
            ErasureTarget::Organization(org) => {
                self.run_organization_erasure(js, id, org).await.map(drop)
            }
        };
        self.unless_ended(id, erased).await
    }

    /// Erases a person of a workspace from Postgres and from the stream, where each webhook that
    /// names the person is overwritten. While something is open the rows stay, and workers repeat
    /// the erasure.
    pub async fn erase_person(
        &self,
        js: &jetstream::Context,
        team: &TeamId,
        user: &UserId,
    ) -> Result<ErasedPerson> {
        let target = ErasureTarget::Person(team.clone(), user.clone());
        let id = self.request_erasure_after(&target, TAKEOVER_AFTER).await?;
        let erased = self.run_person_erasure(js, &id, team, user).await;
        self.unless_ended(&id, erased).await
    }

    /// Erases an organization with its connections, overwrites their committed webhooks in the
    /// stream, and removes all but ids, actions and times from its entries in the audit log.
    /// Returns the number of connections. Workers continue after an interruption.
    pub async fn erase_organization(&self, js: &jetstream::Context, org: &OrgId) -> Result<usize> {
        let target = ErasureTarget::Organization(org.clone());
        let id = self.request_erasure_after(&target, TAKEOVER_AFTER).await?;
        let erased = self.run_organization_erasure(js, &id, org).await;
        self.unless_ended(&id, erased).await
    }

    /// Ignores the failure of an erasure that another process has completed meanwhile.
    async fn unless_ended<T: Default>(&self, id: &str, erased: Result<T>) -> Result<T> {
        match erased {
            Err(_) if !self.store.is_erasure_open(id).await? => Ok(T::default()),
            erased => erased,
        }
    }

    async fn run_person_erasure(
        &self,
        js: &jetstream::Context,
        id: &str,
        team: &TeamId,
        user: &UserId,
    ) -> Result<ErasedPerson> {
        let mut result = ErasedPerson::default();
        for connection in self.store.team_connections(team).await? {
            let of = erase_webhooks(&self.store, js, connection, Some(user.as_str())).await?;
            result.webhooks += of.erased;
            result.open_webhooks += of.open;
        }
        result.rows = self.store.erase_person(&self.actor, team, user).await?;
        let note = format!(
            "open deliveries: {}, open messages: {}, open webhooks: {}",
            result.rows.open_deliveries, result.rows.open_messages, result.open_webhooks
        );
        let open = (!result.is_complete()).then_some((note.as_str(), ERASURE_INTERVAL));
        self.store.record_erasure(id, result.rows.rows, result.webhooks, open).await?;
        Ok(result)
    }

    async fn run_organization_erasure(
        &self,
        js: &jetstream::Context,
        id: &str,
        org: &OrgId,
    ) -> Result<usize> {
        let connections = self.store.organization_connections(org).await?;
        let mut webhooks = 0;
        for &connection in &connections {
            self.set_connection_enabled(js, connection, false).await.or_else(
                |error| match error {
                    // A revoked connection accepts no webhooks, either.
                    OperationError::Conflict(_) => Ok(crate::domain::ConnectionStatus::Revoked),
                    error => Err(error),
                },
            )?;
            webhooks += erase_webhooks(&self.store, js, connection, None).await?.erased;
            self.store.begin_connection_deletion(&self.actor, connection).await?;
            directory::publish(&self.store, js, &[connection]).await?;
            self.store.delete_erased_connection(connection).await?;
            let mut deleted = DeletedConnection::default();
            self.store.delete_all_traffic(connection, &mut deleted).await?;
            directory::publish_tombstone(&self.store, js, connection).await?;
            directory::purge_webhooks(&self.store, js, connection).await?;
            self.store.erase_link_code_attempts(connection).await?;
        }
        self.store.delete_erased_organization(&self.actor, org).await?;
        let rows = self.store.erase_organization_history(&self.actor, org).await?;
        self.store.record_erasure(id, rows, webhooks, None).await?;
        Ok(connections.len())
    }
}

/// Overwrites the committed webhooks of a connection in the stream: all, or those that contain
/// `word`.
///
/// A purge would only remove messages from the index. `ledger verify` subtracts the removals that
/// are recorded here.
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
        // The search fails after the last message. Any other error ends the loop, too.
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

/// Returns whether bytes contain an id that is not part of a longer word.
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
