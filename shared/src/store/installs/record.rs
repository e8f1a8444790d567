//! Connections that installations create or renew: row, tokens, link and audit entry in one
//! transaction.
//!
//! Installations of one workspace may end at the same time, and Slack keeps only the two newest
//! tokens. A token is newer than the stored one if its exchange began after the stored one was
//! recorded. Otherwise the stored token stays as long as Slack accepts it.

use super::links::FoundInstallLink;
use crate::store::{
    AuditAction, AuditOrg, LimitedKind, NewAuditEntry, Store, StoreError, add_audit_entries,
    column,
    connections::{BOT_TOKEN_COLUMN, REFRESH_AT, REFRESH_TOKEN, TABLE},
    inconsistent,
    organizations::count_limited,
};
use crate::{
    domain::{Actor, AgentId, ConnectionId, ConnectionStatus, EnterpriseId, OrgId, TeamId, UserId},
    secrets::{SealContext, SealedValue, Secret},
};
use serde_json::json;
use sqlx::{PgConnection, Row, postgres::PgRow};
use std::time::Duration;
use time::OffsetDateTime;

/// Installation that Slack has granted.
#[derive(Debug)]
pub struct NewInstallation {
    /// Link that began the installation.
    pub link: FoundInstallLink,
    /// Agent of a new connection.
    pub agent: Option<AgentId>,
    /// Enterprise organization, if any.
    pub enterprise: Option<EnterpriseId>,
    /// Workspace. `None` for an organization-wide installation.
    pub team: Option<TeamId>,
    /// Bot token.
    pub bot_token: Secret,
    /// User of the bot.
    pub bot_user: UserId,
    /// Granted scopes.
    pub scopes: Vec<String>,
    /// Person who installed.
    pub installer: UserId,
    /// Token rotation, if the app has it.
    pub rotation: Option<InstallRotation>,
    /// Time before the exchange, by Postgres's clock.
    pub began_at: OffsetDateTime,
}

/// Token rotation of an installation.
#[derive(Debug)]
pub struct InstallRotation {
    /// Refresh token.
    pub refresh_token: Secret,
    /// Validity of the bot token.
    pub expires_in: Duration,
}

impl NewInstallation {
    /// Returns the id that identifies the installation: of the workspace, or of the organization.
    pub fn place(&self) -> &str {
        let of_organization = || self.enterprise.as_ref().map(EnterpriseId::as_str);
        self.team.as_ref().map(TeamId::as_str).or_else(of_organization).unwrap_or_default()
    }
}

/// Result of recording an installation.
#[derive(Debug)]
pub enum RecordedInstallation {
    /// The connection has the new tokens.
    Installed(ConnectionId),
    /// The workspace belongs to another organization.
    OtherOrganization,
    /// The organization has the maximum of connections, and this one would be new.
    TooManyConnections,
    /// The link was revoked, or was used for another workspace.
    LinkUsed,
    /// Another installation was recorded since this one began. Its token stays if Slack accepts it.
    Contested {
        /// Connection.
        connection: ConnectionId,
        /// Version of its row.
        version: i64,
        /// Its token.
        token: Secret,
    },
}

/// Row of the connection, locked.
struct Locked {
    id: ConnectionId,
    org: OrgId,
    status: ConnectionStatus,
    token: Option<String>,
    scopes: Vec<String>,
    version: i64,
    /// Recorded since the installation began.
    is_newer: bool,
}

impl Store {
    /// Records an installation. `replaces` is the version of a contested row whose token Slack
    /// rejects.
    pub async fn record_installation(
        &self,
        by: &Actor,
        new: &NewInstallation,
        replaces: Option<i64>,
    ) -> Result<RecordedInstallation, StoreError> {
        let mut tx = self.pool.begin().await?;
        let is_new = self.insert_connection(&mut tx, new).await?;
        // Rotations are locked before connections, as by a refresh.
        sqlx::query(
            "-- installs.lock_rotation
             select t.connection_id from token_rotations t
               join connections c on c.id = t.connection_id
              where c.app_id = $1 and coalesce(c.team_id, c.enterprise_id, '') = $2
                for update of t",
        )
        .bind(new.link.app.as_str())
        .bind(new.place())
        .execute(&mut *tx)
        .await?;
        let row = sqlx::query(
            "-- installs.lock_connection
             select id, org_id, status, bot_token, scopes, version,
                    coalesce(installed_at >= $3, false) as is_newer
               from connections
              where app_id = $1 and coalesce(team_id, enterprise_id, '') = $2 for update",
        )
        .bind(new.link.app.as_str())
        .bind(new.place())
        .bind(new.began_at)
        .fetch_one(&mut *tx)
        .await?;
        let old = locked(&row)?;
        if old.org != new.link.org {
            return Ok(RecordedInstallation::OtherOrganization); // the drop rolls back
        }
        let limited = LimitedKind::Connection;
        let limit = limited.limit();
        if is_new && count_limited(&mut *tx, &old.org, limited, limit + 1).await? > limit {
            return Ok(RecordedInstallation::TooManyConnections);
        }
        if !is_new
            && old.is_newer
            && replaces != Some(old.version)
            && let Some(sealed) = old.token.clone()
        {
            let token = self.open_token(old.id, sealed)?;
            let (connection, version) = (old.id, old.version);
            return Ok(RecordedInstallation::Contested { connection, version, token });
        }
        if !use_link(&mut tx, &new.link, old.id).await? {
            return Ok(RecordedInstallation::LinkUsed);
        }
        self.write_tokens(&mut tx, new, &old, is_new).await?;
        let org = AuditOrg::Org(old.org.clone());
        let entry = NewAuditEntry::new(AuditAction::ConnectionInstall, old.id, org).after(json!({
            "app": new.link.app, "enterprise": new.enterprise, "team": new.team,
            "scopes": new.scopes, "link": new.link.hash.id(),
            "token_rotation": new.rotation.is_some(),
        }));
        let before = json!({ "status": old.status.as_str(), "scopes": old.scopes });
        let entry = if is_new { entry } else { entry.before(before) };
        add_audit_entries(&mut tx, by, &[entry]).await?;
        tx.commit().await?;
        Ok(RecordedInstallation::Installed(old.id))
    }

    /// Marks a link as used for a connection whose newer installation stays. Returns false for a
    /// link that was revoked, or used for another connection.
    pub async fn use_install_link(
        &self,
        link: &FoundInstallLink,
        connection: ConnectionId,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let used = use_link(&mut tx, link, connection).await?;
        tx.commit().await?;
        Ok(used)
    }

    /// Inserts the row of a new installation. Returns false if it exists. Waits for a concurrent
    /// installation of the same workspace.
    async fn insert_connection(
        &self,
        tx: &mut PgConnection,
        new: &NewInstallation,
    ) -> Result<bool, StoreError> {
        let inserted = sqlx::query(
            "-- installs.insert_connection
             insert into connections (id, org_id, agent_id, app_id, enterprise_id, team_id, status,
                                      installed_by)
             select $1, $2, (select id from agents where org_id = $2 and id = $3), $4, $5, $6,
                    'pending', $7
             on conflict do nothing",
        )
        .bind(ConnectionId::random()?.to_string())
        .bind(new.link.org.as_str())
        .bind(new.agent.as_ref().map(AgentId::as_str))
        .bind(new.link.app.as_str())
        .bind(new.enterprise.as_ref().map(EnterpriseId::as_str))
        .bind(new.team.as_ref().map(TeamId::as_str))
        .bind(new.installer.as_str())
        .execute(tx)
        .await?;
        Ok(inserted.rows_affected() > 0)
    }

    async fn write_tokens(
        &self,
        tx: &mut PgConnection,
        new: &NewInstallation,
        old: &Locked,
        is_new: bool,
    ) -> Result<(), StoreError> {
        let owner = old.id.to_string();
        let seal = |column, secret: &Secret| {
            self.rings.tokens.seal_secret(SealContext { owner: &owner, column }, secret)
        };
        // A stopped connection stays stopped: only an operator enables it. The agent of a link
        // replaces that of an existing connection. The agent of the app does not.
        sqlx::query(
            "-- installs.write_token
             update connections
                set status = case when status = 'stopped' then status else 'active' end,
                    status_reason = '', bot_token = $2, bot_user_id = $3, scopes = $4,
                    installed_by = $5, installed_at = clock_timestamp(),
                    enterprise_id = coalesce($6, enterprise_id),
                    agent_id = case when $7 then agent_id
                        else coalesce((select g.id from agents g
                                        where g.org_id = connections.org_id and g.id = $8),
                                      agent_id) end
              where id = $1",
        )
        .bind(&owner)
        .bind(seal(BOT_TOKEN_COLUMN, &new.bot_token)?.as_str())
        .bind(new.bot_user.as_str())
        .bind(&new.scopes)
        .bind(new.installer.as_str())
        .bind(new.enterprise.as_ref().map(EnterpriseId::as_str))
        .bind(is_new)
        .bind(new.link.agent.as_ref().map(AgentId::as_str))
        .execute(&mut *tx)
        .await?;
        let Some(rotation) = &new.rotation else {
            sqlx::query(
                "-- installs.delete_rotation
                 delete from token_rotations where connection_id = $1",
            )
            .bind(&owner)
            .execute(tx)
            .await?;
            return Ok(());
        };
        sqlx::query(
            "-- installs.write_rotation
             insert into token_rotations as t (connection_id, refresh_token, refresh_at, expires_at)
             values ($1, $2, now() + make_interval(secs => $3::float8 * $4),
                     now() + make_interval(secs => $3))
             on conflict (connection_id) do update
                set client_id = null, client_secret = null, refresh_token = $2,
                    refresh_at = now() + make_interval(secs => $3::float8 * $4),
                    expires_at = now() + make_interval(secs => $3),
                    generation = t.generation + 1, failures = 0, last_error = '',
                    leased_until = '-infinity'",
        )
        .bind(&owner)
        .bind(seal(REFRESH_TOKEN, &rotation.refresh_token)?.as_str())
        .bind(rotation.expires_in.as_secs_f64())
        .bind(REFRESH_AT)
        .execute(tx)
        .await?;
        Ok(())
    }

    fn open_token(&self, id: ConnectionId, sealed: String) -> Result<Secret, StoreError> {
        let owner = id.to_string();
        let context = SealContext { owner: &owner, column: BOT_TOKEN_COLUMN };
        let opened = self.rings.tokens.open_secret(context, &SealedValue::from_stored(sealed));
        opened.map_err(|error| inconsistent(TABLE, "bot_token", &owner, error))
    }
}

async fn use_link(
    tx: &mut PgConnection,
    link: &FoundInstallLink,
    connection: ConnectionId,
) -> Result<bool, StoreError> {
    let used = sqlx::query(
        "-- installs.use_link
         update install_links set used_at = coalesce(used_at, now()), connection_id = $2
          where link_hash = $1 and revoked_at is null
            and (used_at is null or connection_id = $2)
            and not exists (select from apps a where a.id = install_links.app_id
                               and a.org_id <> install_links.org_id)",
    )
    .bind(link.hash.as_bytes())
    .bind(connection.to_string())
    .execute(tx)
    .await?;
    Ok(used.rows_affected() > 0)
}

fn locked(row: &PgRow) -> Result<Locked, StoreError> {
    let key: String = row.try_get("id")?;
    Ok(Locked {
        id: column(row, TABLE, &key, "id")?,
        org: column(row, TABLE, &key, "org_id")?,
        status: column(row, TABLE, &key, "status")?,
        token: row.try_get("bot_token")?,
        scopes: row.try_get("scopes")?,
        version: row.try_get("version")?,
        is_newer: row.try_get("is_newer")?,
    })
}
