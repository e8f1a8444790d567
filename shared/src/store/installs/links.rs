//! Install links. A used link is valid only to install the same connection again.

use crate::domain::{Actor, AgentId, AppId, ConnectionId, InstallHash, InstallLink, OrgId};
use crate::store::{
    AuditAction, AuditOrg, NewAuditEntry, Store, StoreError, add_audit_entries, column,
    maintenance::json, nullable,
};
use serde::{Deserialize, Serialize};
use sqlx::{Row, postgres::PgRow};
use std::time::Duration;

const TABLE: &str = "install_links";

/// Install link to create.
#[derive(Debug)]
pub struct NewInstallLink {
    /// Organization that gets the connection.
    pub org: OrgId,
    /// App.
    pub app: AppId,
    /// Agent of a new connection. `None`: that of the app.
    pub agent: Option<AgentId>,
    /// URL to which the browser is redirected afterwards. Checked by the operation.
    pub return_url: Option<String>,
    /// Lifetime.
    pub ttl: Duration,
}

/// Install link without its secret, for operators.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct InstallLinkRecord {
    /// Prefix of the link's hash, which identifies the link.
    pub id: String,
    pub organization: OrgId,
    pub app: AppId,
    pub agent: Option<AgentId>,
    pub return_url: Option<String>,
    pub created_by: String,
    /// `open`, `used`, `revoked` or `expired`.
    pub state: String,
    pub created_at: String,
    pub expires_at: String,
    pub used_at: Option<String>,
    pub connection: Option<ConnectionId>,
}

/// Install link with the fields that its page and the installation need.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct FoundInstallLink {
    pub hash: InstallHash,
    pub org: OrgId,
    pub org_name: String,
    pub app: AppId,
    pub agent: Option<AgentId>,
    pub return_url: Option<String>,
    /// The link was revoked or has expired, or the app is now limited to another organization.
    pub is_closed: bool,
    /// The link was used.
    pub is_used: bool,
}

/// Columns of an [`FoundInstallLink`], of the tables `l` and `o`.
macro_rules! open_link_columns {
    () => {
        "l.link_hash, l.org_id, o.name as org_name, l.app_id, l.agent_id, l.return_url,
         l.revoked_at is not null or l.expires_at <= now()
             or exists (select from apps a where a.id = l.app_id and a.org_id <> l.org_id)
             as is_closed,
         l.used_at is not null as is_used"
    };
}
pub(super) use open_link_columns;

impl Store {
    /// Creates an install link. Only this call returns it. [`StoreError::Missing`] for an unknown
    /// organization or agent, and for an app that the organization may not install.
    pub async fn create_install_link(
        &self,
        by: &Actor,
        new: &NewInstallLink,
    ) -> Result<InstallLink, StoreError> {
        let link = InstallLink::random()?;
        let mut tx = self.pool.begin().await?;
        let created = sqlx::query(
            "-- installs.create_link
             insert into install_links (link_hash, org_id, app_id, agent_id, return_url, created_by,
                                        expires_at)
             select $1, o.id, a.id, $4, $5, $6, now() + make_interval(secs => $7)
               from organizations o, apps a
              where o.id = $2 and a.id = $3 and (a.org_id is null or a.org_id = o.id)
                and ($4::text is null
                     or exists (select from agents g where g.org_id = o.id and g.id = $4))",
        )
        .bind(link.hash().as_bytes())
        .bind(new.org.as_str())
        .bind(new.app.as_str())
        .bind(new.agent.as_ref().map(AgentId::as_str))
        .bind(&new.return_url)
        .bind(by.to_string())
        .bind(new.ttl.as_secs_f64())
        .execute(&mut *tx)
        .await?;
        if created.rows_affected() == 0 {
            let agent = new.agent.as_ref().map(|id| format!(", or agent {id}"));
            let agent = agent.unwrap_or_default();
            let NewInstallLink { org, app, .. } = new;
            return Err(StoreError::Missing(format!("app {app} of organization {org}{agent}")));
        }
        let org = AuditOrg::Org(new.org.clone());
        let entry = NewAuditEntry::new(AuditAction::InstallLinkCreate, link.hash().id(), org);
        let entry = entry.after(serde_json::json!({
            "app": new.app, "agent": new.agent, "return_url": new.return_url,
            "ttl_seconds": new.ttl.as_secs(),
        }));
        add_audit_entries(&mut tx, by, &[entry]).await?;
        tx.commit().await?;
        // Old links are deleted when the next is created.
        sqlx::query(
            "-- installs.sweep_links
             delete from install_links where ctid = any (array (
                 select ctid from install_links where expires_at < now() - interval '30 days'
                  limit 1000))",
        )
        .execute(&self.pool)
        .await?;
        Ok(link)
    }

    /// Returns install links of an organization, newest first, after a time and an id, at most
    /// `limit`.
    pub async fn install_links_page(
        &self,
        org: &OrgId,
        after: Option<(&str, &str)>,
        limit: i64,
    ) -> Result<Vec<InstallLinkRecord>, StoreError> {
        let rows = sqlx::query(
            "-- installs.links
             select to_jsonb(t) as row from (
                 select substr(encode(link_hash, 'hex'), 1, 16) as id, org_id as organization,
                        app_id as app, agent_id as agent, return_url, created_by,
                        case when used_at is not null then 'used'
                             when revoked_at is not null then 'revoked'
                             when expires_at <= now() then 'expired' else 'open' end as state,
                        created_at, expires_at, used_at, connection_id as connection
                   from install_links
                  where org_id = $1
                    and ($2::text is null or (created_at, substr(encode(link_hash, 'hex'), 1, 16))
                                             < ($2::timestamptz, $3))
                  order by created_at desc, substr(encode(link_hash, 'hex'), 1, 16) desc
                  limit $4) t",
        )
        .bind(org.as_str())
        .bind(after.map(|(at, _)| at))
        .bind(after.map(|(_, id)| id))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(json).collect()
    }

    /// Revokes a link that was not used. Returns false if there is none.
    pub async fn revoke_install_link(
        &self,
        by: &Actor,
        org: &OrgId,
        id: &str,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let revoked = sqlx::query(
            "-- installs.revoke_link
             update install_links set revoked_at = now()
              where substr(encode(link_hash, 'hex'), 1, 16) = $2 and org_id = $1
                and used_at is null and revoked_at is null and expires_at > now()",
        )
        .bind(org.as_str())
        .bind(id)
        .execute(&mut *tx)
        .await?;
        if revoked.rows_affected() == 0 {
            return Ok(false);
        }
        let org = AuditOrg::Org(org.clone());
        let entry = NewAuditEntry::new(AuditAction::InstallLinkRevoke, id, org);
        add_audit_entries(&mut tx, by, &[entry]).await?;
        tx.commit().await?;
        Ok(true)
    }

    /// Returns an install link, in any state.
    pub async fn install_link(
        &self,
        link: &InstallHash,
    ) -> Result<Option<FoundInstallLink>, StoreError> {
        let row = sqlx::query(concat!(
            "-- installs.link\n select ",
            open_link_columns!(),
            " from install_links l join organizations o on o.id = l.org_id where l.link_hash = $1"
        ))
        .bind(link.as_bytes())
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| open_link(*link, &row)).transpose()
    }
}

/// Reads the columns of [`open_link_columns`].
pub(super) fn open_link(hash: InstallHash, row: &PgRow) -> Result<FoundInstallLink, StoreError> {
    let key = hash.id();
    Ok(FoundInstallLink {
        hash,
        org: column(row, TABLE, &key, "org_id")?,
        org_name: row.try_get("org_name")?,
        app: column(row, TABLE, &key, "app_id")?,
        agent: nullable(row, TABLE, &key, "agent_id")?,
        return_url: row.try_get("return_url")?,
        is_closed: row.try_get("is_closed")?,
        is_used: row.try_get("is_used")?,
    })
}
