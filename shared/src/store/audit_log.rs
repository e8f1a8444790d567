//! Audit log: who changed what, and when.
//!
//! The transaction of each change adds its entry. Operations of many steps add theirs with the
//! first step that changes anything. Entries have no secrets: their values are named one by one.

use super::{Store, StoreError, maintenance::json, replace_nul};
use crate::domain::{Actor, ConnectionId, OrgId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::PgConnection;
use std::time::Duration;
use time::OffsetDateTime;

/// Maximum rows deleted per step.
const STEP_ROWS: i32 = 5_000;

macro_rules! actions {
    ($($name:ident => $text:literal,)*) => {
        /// Action of a change. The part before the dot is the kind of its object.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[allow(missing_docs)] // the texts
        pub enum AuditAction {
            $($name,)*
        }

        impl AuditAction {
            /// All actions.
            pub const ALL: &'static [AuditAction] = &[$(AuditAction::$name,)*];

            /// Returns the text of the column.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(AuditAction::$name => $text,)*
                }
            }
        }
    };
}

actions! {
    OrganizationCreate => "organization.create",
    OrganizationChange => "organization.change",
    OrganizationDelete => "organization.delete",
    OrganizationExport => "organization.export",
    OrganizationErase => "organization.erase",
    PersonErase => "person.erase",
    ErasureRequest => "erasure.request",
    MemberCreate => "member.create",
    MemberChange => "member.change",
    MemberDelete => "member.delete",
    AgentCreate => "agent.create",
    AgentChange => "agent.change",
    AgentDelete => "agent.delete",
    AgentPause => "agent.pause",
    AgentResume => "agent.resume",
    AppCreate => "app.create",
    AppChange => "app.change",
    AppDelete => "app.delete",
    ConnectionCreate => "connection.create",
    ConnectionInstall => "connection.install",
    ConnectionMove => "connection.move",
    ConnectionChange => "connection.change",
    ConnectionDelete => "connection.delete",
    ConnectionDisable => "connection.disable",
    ConnectionEnable => "connection.enable",
    ConnectionRevoke => "connection.revoke",
    ConnectionVeto => "connection.veto",
    ConnectionPauseSending => "connection.pause_sending",
    ConnectionResumeSending => "connection.resume_sending",
    ConnectionRotateSigningSecret => "connection.rotate_signing_secret",
    ConnectionEnableTokenRotation => "connection.enable_token_rotation",
    InstallLinkCreate => "install_link.create",
    InstallLinkRevoke => "install_link.revoke",
    LinkCodeCreate => "link_code.create",
    LinkCodeRevoke => "link_code.revoke",
    LinkCodeUse => "link_code.use",
    BindingCreate => "binding.create",
    BindingDelete => "binding.delete",
    ApprovalDecide => "approval.decide",
    SessionCreate => "session.create",
    DeliveriesRetry => "deliveries.retry",
    DeliveriesSkip => "deliveries.skip",
    DeliveriesCancel => "deliveries.cancel",
    DeadLettersRedrive => "dead_letters.redrive",
    DeadLettersDelete => "dead_letters.delete",
    OutboxFailuresRetry => "outbox_failures.retry",
    OutboxFailuresDelete => "outbox_failures.delete",
    WebhookReveal => "webhook.reveal",
    ReplayCreate => "replay.create",
    ReplayCancel => "replay.cancel",
    ApiKeyCreate => "api_key.create",
    ApiKeyRevoke => "api_key.revoke",
    NotificationsCreate => "notifications.create",
    NotificationsChange => "notifications.change",
    NotificationsDelete => "notifications.delete",
    KeyringRewrap => "keyring.rewrap",
}

/// Organization that the object of an entry belongs to.
#[derive(Debug, Clone)]
pub(in crate::store) enum AuditOrg {
    /// None, or several.
    None,
    /// This one.
    Org(OrgId),
    /// The one of a connection, which exists.
    OfConnection(ConnectionId),
}

impl AuditOrg {
    /// Returns the organization of a filter.
    pub(in crate::store) fn of(connection: Option<ConnectionId>, org: &Option<OrgId>) -> Self {
        match (org, connection) {
            (Some(org), _) => Self::Org(org.clone()),
            (None, Some(connection)) => Self::OfConnection(connection),
            (None, None) => Self::None,
        }
    }
}

/// Entry to add.
#[derive(Debug)]
pub(in crate::store) struct NewAuditEntry {
    pub action: AuditAction,
    /// Id of the object. `*` stands for all objects that a filter in `after` selects.
    pub object: String,
    pub org: AuditOrg,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

impl NewAuditEntry {
    pub(in crate::store) fn new(action: AuditAction, object: impl ToString, org: AuditOrg) -> Self {
        Self { action, object: object.to_string(), org, before: None, after: None }
    }

    pub(in crate::store) fn before(self, value: Value) -> Self {
        Self { before: Some(value), ..self }
    }

    pub(in crate::store) fn after(self, value: Value) -> Self {
        Self { after: Some(value), ..self }
    }
}

/// Adds entries in the transaction of their change.
pub(in crate::store) async fn add_audit_entries(
    tx: &mut PgConnection,
    by: &Actor,
    entries: &[NewAuditEntry],
) -> Result<(), StoreError> {
    if entries.is_empty() {
        return Ok(());
    }
    // A jsonb value can't contain NUL.
    let text = |value: &Option<Value>| {
        value.as_ref().map(|value| value.to_string().replace("\\u0000", "\\ufffd"))
    };
    let org = |entry: &NewAuditEntry| match &entry.org {
        AuditOrg::Org(org) => Some(org.to_string()),
        AuditOrg::None | AuditOrg::OfConnection(_) => None,
    };
    let connection = |entry: &NewAuditEntry| match &entry.org {
        AuditOrg::OfConnection(id) => Some(id.to_string()),
        AuditOrg::None | AuditOrg::Org(_) => None,
    };
    sqlx::query(
        "-- audit_log.add
         insert into audit_log (actor, action, object_kind, object_id, org_id, before, after)
         select $1, u.action, split_part(u.action, '.', 1), u.object,
                coalesce(u.org, (select org_id from connections where id = u.connection)),
                u.before::jsonb, u.after::jsonb
           from unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[])
                with ordinality as u (action, object, org, connection, before, after, n)
          order by u.n",
    )
    .bind(by.to_string())
    .bind(entries.iter().map(|entry| entry.action.as_str()).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| replace_nul(&entry.object)).collect::<Vec<_>>())
    .bind(entries.iter().map(org).collect::<Vec<_>>())
    .bind(entries.iter().map(connection).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| text(&entry.before)).collect::<Vec<_>>())
    .bind(entries.iter().map(|entry| text(&entry.after)).collect::<Vec<_>>())
    .execute(tx)
    .await?;
    Ok(())
}

/// Entry of an operation of many steps: added with the first step that changes anything.
pub(in crate::store) struct StepEntry<'a> {
    by: &'a Actor,
    entry: Option<NewAuditEntry>,
}

impl<'a> StepEntry<'a> {
    pub(in crate::store) fn new(by: &'a Actor, entry: NewAuditEntry) -> Self {
        Self { by, entry: Some(entry) }
    }

    /// Adds the entry if the step changed anything and no step before did.
    pub(in crate::store) async fn add(
        &mut self,
        tx: &mut PgConnection,
        changed: bool,
    ) -> Result<(), StoreError> {
        if changed && let Some(entry) = self.entry.take() {
            add_audit_entries(tx, self.by, std::slice::from_ref(&entry)).await?;
        }
        Ok(())
    }
}

/// Entry of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct AuditEntry {
    pub id: i64,
    pub at: String,
    pub actor: String,
    pub action: String,
    pub object_kind: String,
    pub object_id: String,
    pub organization: Option<String>,
    pub before: Option<Value>,
    pub after: Option<Value>,
}

/// Filter of entries. `None` matches everything.
#[derive(Debug, Clone, Default)]
pub struct AuditLogFilter {
    /// Author, in the form of the column.
    pub actor: Option<String>,
    /// Action.
    pub action: Option<String>,
    /// Kind of the object.
    pub object_kind: Option<String>,
    /// Id of the object.
    pub object_id: Option<String>,
    /// Organization of the object.
    pub org: Option<OrgId>,
    /// Earliest time.
    pub from: Option<OffsetDateTime>,
    /// End of the time range, exclusive.
    pub to: Option<OffsetDateTime>,
    /// Id of the entry after which the page begins.
    pub after: Option<i64>,
}

impl Store {
    /// Returns a page of the audit log, newest first, at most `limit` entries.
    pub async fn audit_log(
        &self,
        filter: &AuditLogFilter,
        limit: i64,
    ) -> Result<Vec<AuditEntry>, StoreError> {
        let rows = sqlx::query(
            "-- audit_log.list
             select to_jsonb(t) as row from (
                 select id, at, actor, action, object_kind, object_id, org_id as organization,
                        before, after
                   from audit_log
                  where ($1::text is null or actor = $1) and ($2::text is null or action = $2)
                    and ($3::text is null or object_kind = $3)
                    and ($4::text is null or object_id = $4) and ($5::text is null or org_id = $5)
                    and ($6::timestamptz is null or at >= $6)
                    and ($7::timestamptz is null or at < $7)
                    and ($8::bigint is null or id < $8)
                  order by id desc limit $9) t",
        )
        .bind(&filter.actor)
        .bind(&filter.action)
        .bind(&filter.object_kind)
        .bind(&filter.object_id)
        .bind(filter.org.as_ref().map(OrgId::as_str))
        .bind(filter.from)
        .bind(filter.to)
        .bind(filter.after)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(json).collect()
    }

    /// Deletes entries older than `keep`, at most a step. Returns their number. Fails if `keep` is
    /// less than 30 days.
    pub async fn prune_audit_log(&self, keep: Duration) -> Result<u64, StoreError> {
        let pruned: i64 = sqlx::query_scalar(
            "-- audit_log.prune\n select prune_audit_log(make_interval(secs => $1), $2)",
        )
        .bind(keep.as_secs_f64())
        .bind(STEP_ROWS)
        .fetch_one(&self.pool)
        .await?;
        Ok(pruned.unsigned_abs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_each_action_once() {
        let mut names: Vec<_> = AuditAction::ALL.iter().map(|action| action.as_str()).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
        assert!(names.iter().all(|name| name.matches('.').count() == 1));
    }
}
