//! Link codes: creation and single use. [`super::link_code_attempts`] limits wrong codes.
//!
//! A use locks the row, checks the code and then consumes it, so that a code used in the wrong
//! conversation stays valid. The row stores its user. A repeated use by the same person in the same
//! conversation succeeds again, because the first reply may have been lost.

use super::link_code_attempts;
use crate::store::{
    AuditAction, AuditOrg, NewAuditEntry, Store, StoreError, add_audit_entries, column,
    inconsistent, nullable, timestamp,
};
use crate::{
    domain::{
        Actor, AgentId, ChannelId, ConnectionId, LinkCode, LinkCodeHash, OrgId, OutgoingMessage,
        Platform, Surface, TeamId, UserId,
    },
    stream::DedupKey,
};
use serde::Serialize;
use sqlx::{PgConnection, Row, postgres::PgRow};
use std::time::Duration;

const TABLE: &str = "link_codes";

/// Link code to create.
#[derive(Debug)]
pub struct NewLinkCode {
    /// Owner of the agent.
    pub org: OrgId,
    /// Agent that the code binds.
    pub agent: AgentId,
    /// Platform on which the code is valid.
    pub platform: Platform,
    /// Surfaces on which the code is valid.
    pub surfaces: Vec<Surface>,
    /// Connection on which the code is valid: one of the organization, or a preview connection.
    /// `None`: any preview connection.
    pub connection: Option<ConnectionId>,
    /// Lifetime, at most an hour.
    pub ttl: Duration,
}

/// Use of a link code.
pub struct LinkCodeUse {
    /// Hash of the code.
    pub code: LinkCodeHash,
    /// Connection.
    pub connection: ConnectionId,
    /// Workspace.
    pub team: TeamId,
    /// Conversation.
    pub channel: ChannelId,
    /// Surface of the conversation.
    pub surface: Surface,
    /// Person.
    pub user: UserId,
    /// Reply for each result. Called inside the transaction.
    pub reply: ReplyForLinkCode,
}

/// Reply for a result.
pub type ReplyForLinkCode = Box<dyn Fn(&LinkCodeResult) -> Vec<OutgoingMessage> + Send + Sync>;

/// Result of using a code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkCodeResult {
    /// The conversation is bound, by this use or an earlier one of the same person.
    Bound {
        /// Name of the agent, or its id.
        agent: String,
        /// True for this use.
        is_new: bool,
    },
    /// Unknown, expired, or for another connection. One result for all, so that it discloses
    /// nothing.
    NotFound,
    /// Valid on other surfaces, where it can still be used.
    WrongSurface {
        /// Surfaces on which the code is valid.
        allowed: Vec<Surface>,
    },
    /// For an app (mode `forward`) of another organization, which the connection does not allow.
    /// The code can still be used.
    ForeignApp,
    /// Used by another person or in another conversation.
    AlreadyUsed,
    /// The person or workspace exceeded its limit. The code was not checked.
    TooManyAttempts,
}

/// Link code without its secret, for operators.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct LinkCodeRecord {
    /// Prefix of the code's hash, which identifies the code.
    pub id: String,
    pub org: OrgId,
    pub agent: AgentId,
    pub platform: Platform,
    pub surfaces: Vec<String>,
    pub connection: Option<ConnectionId>,
    pub created_by: String,
    /// `open`, `used`, `revoked` or `expired`.
    pub state: String,
    pub created_at: Option<String>,
    pub expires_at: Option<String>,
    pub consumed_connection: Option<ConnectionId>,
    pub consumed_channel: Option<ChannelId>,
    pub consumed_user: Option<UserId>,
}

/// Columns of a [`LinkCodeRecord`].
macro_rules! link_code_columns {
    () => {
        "substr(encode(code_hash, 'hex'), 1, 16) as id, org_id, agent_id, platform, surfaces,
         connection_id, created_by, created_at, expires_at, consumed_connection, consumed_channel,
         consumed_user,
         case when consumed_at is not null then 'used' when revoked_at is not null then 'revoked'
              when expires_at <= now() then 'expired' else 'open' end as state"
    };
}
pub(super) use link_code_columns;

impl LinkCodeResult {
    /// Returns the result for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            LinkCodeResult::Bound { .. } => "bound",
            LinkCodeResult::NotFound => "not_found",
            LinkCodeResult::WrongSurface { .. } => "wrong_surface",
            LinkCodeResult::ForeignApp => "foreign_app",
            LinkCodeResult::AlreadyUsed => "already_used",
            LinkCodeResult::TooManyAttempts => "too_many_attempts",
        }
    }
}

impl Store {
    /// Creates a link code. Only this call returns the code. [`StoreError::Missing`] for an unknown
    /// agent or connection, and for another organization's connection without preview mode.
    pub async fn create_link_code(
        &self,
        by: &Actor,
        new: &NewLinkCode,
    ) -> Result<LinkCode, StoreError> {
        let code = LinkCode::random()?;
        let mut tx = self.pool.begin().await?;
        let surfaces: Vec<&str> = new.surfaces.iter().map(|s| s.as_str()).collect();
        let created = sqlx::query(
            "-- link_codes.create
             insert into link_codes (code_hash, org_id, agent_id, platform, surfaces, connection_id,
                                     created_by, expires_at)
             select $1, org_id, id, $4, $5, $6, $7, now() + make_interval(secs => $8)
               from agents
              where org_id = $2 and id = $3
                and ($6::text is null
                     or exists (select from connections
                                 where id = $6 and platform = $4
                                   and (preview_mode or org_id = $2)))",
        )
        .bind(code.hash().as_bytes())
        .bind(new.org.as_str())
        .bind(new.agent.as_str())
        .bind(new.platform.as_str())
        .bind(&surfaces)
        .bind(new.connection.map(|id| id.to_string()))
        .bind(by.to_string())
        .bind(new.ttl.as_secs_f64())
        .execute(&mut *tx)
        .await?;
        if created.rows_affected() == 0 {
            let on = |id| format!(", or no connection {id} that accepts its codes");
            let on = new.connection.map(on).unwrap_or_default();
            let NewLinkCode { org, agent, .. } = new;
            return Err(StoreError::Missing(format!("agent {agent} of organization {org}{on}")));
        }
        let (action, org) = (AuditAction::LinkCodeCreate, AuditOrg::Org(new.org.clone()));
        let entry = NewAuditEntry::new(action, code.hash().id(), org).after(serde_json::json!({
            "agent": new.agent, "surfaces": surfaces, "connection": new.connection,
            "ttl_seconds": new.ttl.as_secs(),
        }));
        add_audit_entries(&mut tx, by, &[entry]).await?;
        tx.commit().await?;
        // Old codes are deleted when the next is created.
        sqlx::query(
            "-- link_codes.sweep
             delete from link_codes where ctid = any (array (
                 select ctid from link_codes where expires_at < now() - interval '30 days'
                  limit 1000))",
        )
        .execute(&self.pool)
        .await?;
        Ok(code)
    }

    /// Returns the newest link codes, at most `limit`.
    pub async fn link_codes(&self, limit: i64) -> Result<Vec<LinkCodeRecord>, StoreError> {
        let rows = sqlx::query(concat!(
            "-- link_codes.list\n select ",
            link_code_columns!(),
            " from link_codes order by created_at desc limit $1"
        ))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(link_code_record).collect()
    }

    /// Revokes an open link code, of `org` if given. Returns false if there is none.
    pub async fn revoke_link_code(
        &self,
        by: &Actor,
        id: &str,
        org: Option<&OrgId>,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let revoked = sqlx::query(
            "-- link_codes.revoke
             update link_codes set revoked_at = now(), expires_at = now()
              where substr(encode(code_hash, 'hex'), 1, 16) = $1 and consumed_at is null
                and expires_at > now() and ($2::text is null or org_id = $2)
             returning org_id",
        )
        .bind(id)
        .bind(org.map(OrgId::as_str))
        .fetch_optional(&mut *tx)
        .await?;
        let Some(row) = revoked else { return Ok(false) };
        let org = AuditOrg::Org(column(&row, TABLE, id, "org_id")?);
        let entry = NewAuditEntry::new(AuditAction::LinkCodeRevoke, id, org);
        add_audit_entries(&mut tx, by, &[entry]).await?;
        tx.commit().await?;
        Ok(true)
    }
}

pub(super) fn link_code_record(row: &PgRow) -> Result<LinkCodeRecord, StoreError> {
    let id: String = row.try_get("id")?;
    Ok(LinkCodeRecord {
        org: column(row, TABLE, &id, "org_id")?,
        agent: column(row, TABLE, &id, "agent_id")?,
        platform: column(row, TABLE, &id, "platform")?,
        surfaces: row.try_get("surfaces")?,
        connection: nullable(row, TABLE, &id, "connection_id")?,
        created_by: row.try_get("created_by")?,
        state: row.try_get("state")?,
        created_at: timestamp(row, TABLE, &id, "created_at")?,
        expires_at: timestamp(row, TABLE, &id, "expires_at")?,
        consumed_connection: nullable(row, TABLE, &id, "consumed_connection")?,
        consumed_channel: nullable(row, TABLE, &id, "consumed_channel")?,
        consumed_user: nullable(row, TABLE, &id, "consumed_user")?,
        id,
    })
}

/// Uses a link code inside the caller's transaction.
pub(in crate::store) async fn consume_link_code(
    tx: &mut PgConnection,
    code_use: &LinkCodeUse,
    by: &DedupKey,
) -> Result<LinkCodeResult, StoreError> {
    if link_code_attempts::is_over_limit(tx, code_use).await? {
        return Ok(LinkCodeResult::TooManyAttempts);
    }
    let result = check_and_consume(tx, code_use, by).await?;
    if result == LinkCodeResult::NotFound {
        link_code_attempts::record_wrong_code(tx, code_use).await?;
    }
    Ok(result)
}

async fn check_and_consume(
    tx: &mut PgConnection,
    code_use: &LinkCodeUse,
    by: &DedupKey,
) -> Result<LinkCodeResult, StoreError> {
    let connection = code_use.connection.to_string();
    let row = sqlx::query(
        "-- link_codes.check
         select c.surfaces, c.org_id, c.agent_id, c.consumed_at is not null as consumed,
                c.expires_at > now() as fresh, coalesce(nullif(a.name, ''), a.id) as agent_name,
                coalesce(c.connection_id = $2 and (n.preview_mode or n.org_id = c.org_id),
                         n.preview_mode) as here,
                a.mode = 'forward' and a.org_id <> n.org_id
                and not coalesce((n.settings ->> 'foreign_apps')::boolean, false) as foreign_app,
                coalesce(c.consumed_connection = $2 and c.consumed_team = $3
                         and c.consumed_channel = $4
                         and c.consumed_user = $5 and b.agent_id is not null, false) as same_use
           from link_codes c
           join agents a on a.org_id = c.org_id and a.id = c.agent_id
           join connections n on n.id = $2 and n.platform = c.platform
           left join channel_bindings b on b.connection_id = $2 and b.team_id = $3
            and b.channel_id = $4
                                       and b.org_id = c.org_id and b.agent_id = c.agent_id
          where c.code_hash = $1
            for update of c",
    )
    .bind(code_use.code.as_bytes())
    .bind(&connection)
    .bind(code_use.team.as_str())
    .bind(code_use.channel.as_str())
    .bind(code_use.user.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else { return Ok(LinkCodeResult::NotFound) };
    let agent: String = row.try_get("agent_name")?;
    if !row.try_get::<bool, _>("here")? {
        return Ok(LinkCodeResult::NotFound);
    }
    if row.try_get("consumed")? {
        let same_use = row.try_get("same_use")?;
        return Ok(match same_use {
            true => LinkCodeResult::Bound { agent, is_new: false },
            false => LinkCodeResult::AlreadyUsed,
        });
    }
    if !row.try_get::<bool, _>("fresh")? {
        return Ok(LinkCodeResult::NotFound);
    }
    let surfaces: Vec<String> = row.try_get("surfaces")?;
    let allowed: Result<Vec<Surface>, String> = surfaces.iter().map(|text| text.parse()).collect();
    let allowed = allowed
        .map_err(|why| inconsistent(TABLE, "surfaces", &format!("{:?}", code_use.code), why))?;
    if !allowed.contains(&code_use.surface) {
        return Ok(LinkCodeResult::WrongSurface { allowed });
    }
    if row.try_get("foreign_app")? {
        return Ok(LinkCodeResult::ForeignApp);
    }
    // The lock makes this guard redundant.
    let consumed = sqlx::query(
        "-- link_codes.consume
         with used as (
             update link_codes
                set consumed_at = now(), consumed_by = $6, consumed_connection = $2,
                    consumed_team = $3, consumed_channel = $4, consumed_user = $5
              where code_hash = $1 and consumed_at is null
             returning org_id, agent_id)
         insert into channel_bindings (connection_id, team_id, channel_id, org_id, agent_id,
                                       bound_by)
         select $2, $3, $4, org_id, agent_id, $5 from used
         on conflict (connection_id, team_id, channel_id)
         do update set org_id = excluded.org_id, agent_id = excluded.agent_id,
                       bound_by = excluded.bound_by, bound_at = now()",
    )
    .bind(code_use.code.as_bytes())
    .bind(&connection)
    .bind(code_use.team.as_str())
    .bind(code_use.channel.as_str())
    .bind(code_use.user.as_str())
    .bind(by.as_str())
    .execute(&mut *tx)
    .await?;
    if consumed.rows_affected() != 1 {
        return Ok(LinkCodeResult::AlreadyUsed);
    }
    let by = Actor::SlackUser { team: code_use.team.clone(), user: code_use.user.clone() };
    let org: OrgId = column(&row, TABLE, "used", "org_id")?;
    let bound: String = row.try_get("agent_id")?;
    let entry = NewAuditEntry::new(
        AuditAction::LinkCodeUse,
        code_use.code.id(),
        AuditOrg::Org(org.clone()),
    )
    .after(serde_json::json!({
        "connection": code_use.connection, "team": code_use.team,
        "channel": code_use.channel, "agent": format!("{org}/{bound}"),
    }));
    add_audit_entries(tx, &by, &[entry]).await?;
    Ok(LinkCodeResult::Bound { agent, is_new: true })
}
