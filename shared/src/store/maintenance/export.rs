//! Export of an organization: settings, connections, bindings, usage and changes. No secrets and no
//! text of people.

use crate::domain::{Actor, OrgId};
use crate::store::{AuditAction, AuditOrg, NewAuditEntry, Store, StoreError, add_audit_entries};
use serde_json::{Value, json};
use sqlx::Row;

/// Rows per query.
const PAGE_ROWS: i64 = 500;

/// Kinds of rows with their statements: `$1` is the organization, `$2` the key of the last row,
/// `$3` the maximum number of rows. Each returns `key` and `row`, in the order of the keys.
const SECTIONS: [(&str, &str); 10] = [
    (
        "organization",
        "-- export.organization
         select id as key, to_jsonb(o) as row from organizations o where id = $1 and id > $2 limit $3",
    ),
    (
        "agent",
        "-- export.agents
         select id as key, to_jsonb(a) - 'secret' - 'headers' - 'headers_previous' as row from agents a
          where org_id = $1 and id > $2 order by id limit $3",
    ),
    (
        "member",
        "-- export.members
         select user_id as key, jsonb_build_object('user', user_id, 'slack',
                    (select coalesce(jsonb_agg(team_id || '/' || platform_user_id), '[]')
                       from user_identities i where i.user_id = m.user_id)) as row
           from organization_members m where org_id = $1 and user_id > $2 order by user_id limit $3",
    ),
    (
        "connection",
        "-- export.connections
         select id as key,
                to_jsonb(c) - 'signing_secret' - 'signing_secret_previous' - 'bot_token' as row
           from connections c where org_id = $1 and id > $2 order by id limit $3",
    ),
    (
        "binding",
        "-- export.bindings
         select connection_id || '/' || team_id || '/' || channel_id as key, to_jsonb(b) as row
           from channel_bindings b
          where connection_id in (select id from connections where org_id = $1)
            and connection_id || '/' || team_id || '/' || channel_id > $2 order by 1 limit $3",
    ),
    (
        "link_code",
        "-- export.link_codes
         select encode(code_hash, 'hex') as key,
                to_jsonb(l) - 'code_hash'
                    || jsonb_build_object('id', substr(encode(code_hash, 'hex'), 1, 16)) as row
           from link_codes l where org_id = $1 and encode(code_hash, 'hex') > $2 order by 1 limit $3",
    ),
    (
        "dead_letter",
        "-- export.dead_letters
         select lpad(id::text, 20, '0') as key, to_jsonb(d) - 'payload' - 'last_error' as row
           from dead_letters d
          where connection_id in (select id from connections where org_id = $1)
            and id > coalesce(nullif($2, ''), '0')::bigint order by id limit $3",
    ),
    (
        "outbox_failure",
        "-- export.outbox_failures
         select lpad(id::text, 20, '0') as key, to_jsonb(f) - 'request' as row
           from outbox_failures f
          where connection_id in (select id from connections where org_id = $1)
            and id > coalesce(nullif($2, ''), '0')::bigint order by id limit $3",
    ),
    (
        "usage",
        "-- export.usage
         select connection_id || to_char(hour at time zone 'UTC', 'YYYYMMDDHH24') as key,
                to_jsonb(u) as row
           from connection_usage u
          where connection_id in (select id from connections where org_id = $1)
            and connection_id || to_char(hour at time zone 'UTC', 'YYYYMMDDHH24') > $2
          order by 1 limit $3",
    ),
    (
        "audit_entry",
        "-- export.audit_log
         select lpad(id::text, 20, '0') as key, to_jsonb(a) as row from audit_log a
          where org_id = $1 and id > coalesce(nullif($2, ''), '0')::bigint order by id limit $3",
    ),
];

/// Position in an export.
#[derive(Debug, Clone, Default)]
pub struct ExportPosition {
    section: usize,
    key: String,
}

impl Store {
    /// Records the export of an organization.
    pub async fn begin_export(&self, by: &Actor, org: &OrgId) -> Result<(), StoreError> {
        let mut tx = self.pool.begin().await?;
        let of = AuditOrg::Org(org.clone());
        let entry = NewAuditEntry::new(AuditAction::OrganizationExport, org, of);
        add_audit_entries(&mut tx, by, &[entry]).await?;
        Ok(tx.commit().await?)
    }

    /// Returns a page of an export, each row as `{"kind": …, "row": …}`, and the next position,
    /// `None` after the last page.
    pub async fn export_page(
        &self,
        org: &OrgId,
        at: &ExportPosition,
    ) -> Result<(Vec<Value>, Option<ExportPosition>), StoreError> {
        let Some((kind, sql)) = SECTIONS.get(at.section) else { return Ok((Vec::new(), None)) };
        let rows = sqlx::query(*sql).bind(org.as_str()).bind(&at.key).bind(PAGE_ROWS);
        let rows = rows.fetch_all(&self.pool).await?;
        let mut page = Vec::with_capacity(rows.len());
        let mut last = String::new();
        for row in &rows {
            last = row.try_get("key")?;
            page.push(json!({ "kind": kind, "row": row.try_get::<Value, _>("row")? }));
        }
        let next = match rows.len() as i64 == PAGE_ROWS {
            true => ExportPosition { section: at.section, key: last },
            false => ExportPosition { section: at.section + 1, key: String::new() },
        };
        Ok((page, Some(next).filter(|next| next.section < SECTIONS.len())))
    }
}
