//! Export of an organization, and erasure of an organization or a person in a workspace.

use super::{
    OperationError, Operations, Result,
    agents::owns_apps,
    directory::{self, failed},
};
use crate::{
    domain::{ConnectionId, OrgId, TeamId, UserId},
    store::{
        DeletedConnection, ErasedRows, ErasureTarget, ExportPosition, OpenErasure, Store,
        holds_word,
    },
    stream::{self, Partition},
};
use async_nats::jetstream::{
    self,
    stream::{RawMessageError, RawMessageErrorKind},
};
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

/// Result of the erasure of an organization.
#[derive(Debug, Clone, Copy, Default)]
pub struct ErasedOrganization {
    /// Connections that were deleted.
    pub connections: usize,
    /// Webhooks that intake has not committed. Their connections remain.
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

    /// Carries out an erasure as far as possible. Returns whether it is complete. An incomplete one
    /// is repeated later.
    pub async fn run_erasure(
        &self,
        js: &jetstream::Context,
        erasure: &OpenErasure,
    ) -> Result<bool> {
        let id = &erasure.id;
        let erased = match &erasure.target {
            ErasureTarget::Person(team, user) => {
                self.run_person_erasure(js, id, team, user).await.map(|it| it.is_complete())
            }
            ErasureTarget::Organization(org) => {
                self.run_organization_erasure(js, id, org).await.map(|it| it.open_webhooks == 0)
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

    /// Erases an organization with its connections, overwrites their webhooks in the stream, and
    /// removes all but ids, actions and times from its entries in the audit log. While intake has
    /// not committed webhooks of a connection, the connection and the organization remain, and
    /// workers repeat the erasure.
    pub async fn erase_organization(
        &self,
        js: &jetstream::Context,
        org: &OrgId,
    ) -> Result<ErasedOrganization> {
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
    ) -> Result<ErasedOrganization> {
        let connections = self.store.organization_connections(org).await?;
        let (mut webhooks, mut result) = (0, ErasedOrganization::default());
        for connection in connections {
            self.set_connection_enabled(js, connection, false).await.or_else(
                |error| match error {
                    // A revoked connection accepts no webhooks, either.
                    OperationError::Conflict(_) => Ok(crate::domain::ConnectionStatus::Revoked),
                    error => Err(error),
                },
            )?;
            let of = erase_webhooks(&self.store, js, connection, None).await?;
            webhooks += of.erased;
            // The purge below would leave their bytes in the files of the stream.
            if of.open > 0 {
                result.open_webhooks += of.open;
                continue;
            }
            self.store.begin_connection_deletion(&self.actor, connection).await?;
            directory::publish(&self.store, js, &[connection]).await?;
            self.store.delete_erased_connection(connection).await?;
            let mut deleted = DeletedConnection::default();
            self.store.delete_all_traffic(connection, &mut deleted).await?;
            directory::publish_tombstone(&self.store, js, connection).await?;
            directory::purge_webhooks(&self.store, js, connection).await?;
            self.store.erase_link_code_attempts(connection).await?;
            result.connections += 1;
        }
        if result.open_webhooks > 0 {
            let note = format!("open webhooks: {}", result.open_webhooks);
            let open = Some((note.as_str(), ERASURE_INTERVAL));
            self.store.record_erasure(id, 0, webhooks, open).await?;
            return Ok(result);
        }
        self.store.delete_erased_organization(&self.actor, org).await?;
        let rows = self.store.erase_organization_history(&self.actor, org).await?;
        self.store.record_erasure(id, rows, webhooks, None).await?;
        Ok(result)
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
        let ended = loop {
            let read = webhooks.get_first_raw_message_by_subject(&subject, next).await;
            let message = match unless_last(read) {
                Ok(Some(message)) => message,
                Ok(None) => break Ok(()),
                Err(error) => break Err(failed(error)),
            };
            next = message.sequence + 1;
            if word.is_some_and(|word| !holds_word(&message.payload, word)) {
                continue;
            }
            if message.sequence > cursor {
                result.open += 1;
                continue;
            }
            if let Err(error) = webhooks.delete_message(message.sequence).await {
                break Err(failed(error));
            }
            erased += 1;
        };
        // Also after an error: `ledger verify` misses messages that were deleted before it.
        store.record_removed(removal, erased).await?;
        ended?;
        result.erased += erased;
    }
    Ok(result)
}

/// Returns the message of a search, or `None` after the last one.
fn unless_last<T>(
    read: std::result::Result<T, RawMessageError>,
) -> std::result::Result<Option<T>, RawMessageError> {
    match read {
        Ok(message) => Ok(Some(message)),
        Err(error) if error.kind() == RawMessageErrorKind::NoMessageFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Any other error must not end an erasure as if nothing were left.
    #[test]
    fn ends_search_after_last_message_only() {
        let failed = |kind| unless_last::<()>(Err(RawMessageError::new(kind)));
        assert!(matches!(failed(RawMessageErrorKind::NoMessageFound), Ok(None)));
        for kind in [RawMessageErrorKind::Other, RawMessageErrorKind::InvalidSubject] {
            assert!(failed(kind).is_err());
        }
        assert!(matches!(unless_last(Ok(7)), Ok(Some(7))));
    }
}
