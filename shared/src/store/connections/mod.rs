//! Connections: creation, secrets, projection to the directory, notifications. Status changes are
//! in [`admin`], declarations of operators in [`super::declarative`].

mod admin;
mod deletion;
mod late_traffic;
mod token_failures;
mod token_rotation;

pub use admin::{ConnectionSummary, HistoryEntry};
pub use deletion::DeletedConnection;
pub(in crate::store) use deletion::delete_row;
pub use token_rotation::{DueTokenRefresh, NewTokenRotation};
pub(in crate::store) use token_rotation::{REFRESH_AT, REFRESH_TOKEN};

use super::{
    AuditAction, AuditOrg, NewAuditEntry, Store, StoreError, add_audit_entries, apps, column,
    inconsistent, nullable, pool::Listener,
};
use crate::{
    directory::{ConnectionRecord, DirectoryEntry, SIGNING_SECRET_COLUMN, SealedSigningSecret},
    domain::{
        Actor, AgentId, AppId, ConnectionId, ConnectionSettings, ConnectionStatus, EnterpriseId,
        OrgId, TeamId,
    },
    secrets::{SealContext, SealedValue, Secret},
};
use sqlx::{Row, postgres::PgRow, types::Json};
use std::time::Duration;

pub(super) const TABLE: &str = "connections";
pub(super) const BOT_TOKEN_COLUMN: &str = "connections.bot_token";

/// Connection to create.
#[derive(Debug)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct NewConnection {
    pub id: ConnectionId,
    pub org: OrgId,
    pub agent: Option<AgentId>,
    pub app: AppId,
    pub enterprise: Option<EnterpriseId>,
    pub team: Option<TeamId>,
    pub preview_mode: bool,
    pub status: ConnectionStatus,
    pub signing_secret: Secret,
    pub bot_token: Option<Secret>,
    pub bot_user: Option<String>,
    pub settings: ConnectionSettings,
}

/// Connection with the fields that a worker needs.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct Connection {
    pub id: ConnectionId,
    pub org: OrgId,
    pub agent: Option<AgentId>,
    pub enterprise: Option<EnterpriseId>,
    pub team: Option<TeamId>,
    pub preview_mode: bool,
    pub status: ConnectionStatus,
    pub bot_token: Option<Secret>,
    pub bot_user: Option<String>,
    /// Secret that signs webhooks forwarded to an app.
    pub signing_secret: Secret,
    pub settings: ConnectionSettings,
    pub version: i64,
}

impl Connection {
    /// Returns whether an app (mode `forward`) of an organization may get webhooks.
    pub fn allows_app_of(&self, org: &OrgId) -> bool {
        self.settings.foreign_apps || self.org == *org
    }
}

impl From<&Connection> for super::ConnectionFacts {
    fn from(connection: &Connection) -> Self {
        Self {
            id: connection.id,
            org: connection.org.clone(),
            enterprise: connection.enterprise.clone(),
            team: connection.team.clone(),
            preview_mode: connection.preview_mode,
            status: connection.status,
            bot_user: connection.bot_user.clone(),
            settings: connection.settings.clone(),
        }
    }
}

impl Store {
    /// Creates a connection. Returns its version.
    pub async fn create_connection(&self, new: &NewConnection) -> Result<i64, StoreError> {
        let id = new.id.to_string();
        let context = SealContext { owner: &id, column: SIGNING_SECRET_COLUMN };
        let signing_secret = self.rings.signing.seal_secret(context, &new.signing_secret)?;
        let context = SealContext { owner: &id, column: BOT_TOKEN_COLUMN };
        let token = new
            .bot_token
            .as_ref()
            .map(|t| self.rings.tokens.seal_secret(context, t))
            .transpose()?;
        let row = sqlx::query(
            "-- connections.create
             insert into connections (id, org_id, agent_id, app_id, enterprise_id, team_id,
                                      preview_mode, status, signing_secret, bot_token, bot_user_id,
                                      settings, installed_at)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, now())
             returning version",
        )
        .bind(&id)
        .bind(new.org.as_str())
        .bind(new.agent.as_ref().map(AgentId::as_str))
        .bind(new.app.as_str())
        .bind(new.enterprise.as_ref().map(EnterpriseId::as_str))
        .bind(new.team.as_ref().map(TeamId::as_str))
        .bind(new.preview_mode)
        .bind(new.status.as_str())
        .bind(signing_secret.as_str())
        .bind(token.as_ref().map(SealedValue::as_str))
        .bind(&new.bot_user)
        .bind(Json(&new.settings))
        .fetch_one(&self.pool)
        .await?;
        Ok(row.try_get("version")?)
    }

    /// Replaces the signing secret. The previous one stays valid for `overlap`, because the time of
    /// Slack's change is unknown.
    pub async fn rotate_signing_secret(
        &self,
        by: &Actor,
        id: ConnectionId,
        new: &Secret,
        overlap: Duration,
    ) -> Result<(), StoreError> {
        let owner = id.to_string();
        let context = SealContext { owner: &owner, column: SIGNING_SECRET_COLUMN };
        let sealed = self.rings.signing.seal_secret(context, new)?;
        let mut tx = self.pool.begin().await?;
        let changed = sqlx::query(
            "-- connections.rotate_signing_secret
             update connections
                set signing_secret = $2,
                    signing_secret_previous = case when $3::float8 > 0 then signing_secret end,
                    signing_secret_previous_until =
                        case when $3 > 0 and signing_secret is not null
                            then now() + make_interval(secs => $3) end
              where id = $1",
        )
        .bind(&owner)
        .bind(sealed.as_str())
        .bind(overlap.as_secs_f64())
        .execute(&mut *tx)
        .await?;
        if changed.rows_affected() == 0 {
            return Err(StoreError::Missing(format!("connection {id}")));
        }
        let action = AuditAction::ConnectionRotateSigningSecret;
        let entry =
            NewAuditEntry::new(action, id, AuditOrg::OfConnection(id)).after(serde_json::json!({
                "signing_secret": "changed", "overlap_seconds": overlap.as_secs(),
            }));
        add_audit_entries(&mut tx, by, &[entry]).await?;
        Ok(tx.commit().await?)
    }

    /// Returns a connection with opened tokens. Read-only.
    pub async fn load_connection(
        &self,
        id: ConnectionId,
    ) -> Result<Option<Connection>, StoreError> {
        let row = sqlx::query(
            "-- connections.load
             select c.org_id, c.agent_id, c.app_id, c.enterprise_id, c.team_id, c.preview_mode,
                    c.status, c.bot_token, c.bot_user_id, c.signing_secret, c.settings, c.version,
                    a.signing_secret as app_signing_secret
               from connections c left join apps a on a.id = c.app_id and c.signing_secret is null
              where c.id = $1",
        )
        .bind(id.to_string())
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| self.connection_of(id, &row)).transpose()
    }

    /// Returns the bot token of a connection, `None` if it has none. Needs the keyring of tokens.
    pub async fn load_bot_token(&self, id: ConnectionId) -> Result<Option<Secret>, StoreError> {
        let sealed: Option<Option<String>> = sqlx::query_scalar(
            "-- connections.bot_token
             select bot_token from connections where id = $1",
        )
        .bind(id.to_string())
        .fetch_optional(&self.pool)
        .await?;
        self.open_bot_token(&id.to_string(), sealed.flatten())
    }

    fn open_bot_token(
        &self,
        key: &str,
        sealed: Option<String>,
    ) -> Result<Option<Secret>, StoreError> {
        let context = SealContext { owner: key, column: BOT_TOKEN_COLUMN };
        sealed
            .map(|sealed| self.rings.tokens.open_secret(context, &SealedValue::from_stored(sealed)))
            .transpose()
            .map_err(|error| inconsistent(TABLE, "bot_token", key, error))
    }

    fn connection_of(&self, id: ConnectionId, row: &PgRow) -> Result<Connection, StoreError> {
        let key = id.to_string();
        let bot_token = self.open_bot_token(&key, row.try_get("bot_token")?)?;
        let signing_secret = self.open_signing_secret(&key, row)?;
        let settings = settings(row, &key)?;
        Ok(Connection {
            id,
            org: column(row, TABLE, &key, "org_id")?,
            agent: nullable(row, TABLE, &key, "agent_id")?,
            enterprise: nullable(row, TABLE, &key, "enterprise_id")?,
            team: nullable(row, TABLE, &key, "team_id")?,
            preview_mode: row.try_get("preview_mode")?,
            status: column(row, TABLE, &key, "status")?,
            bot_token,
            bot_user: row.try_get("bot_user_id")?,
            signing_secret,
            settings,
            version: row.try_get("version")?,
        })
    }

    /// Opens the signing secret of a connection, or that of its app.
    fn open_signing_secret(&self, key: &str, row: &PgRow) -> Result<Secret, StoreError> {
        let (own, of_app): (Option<String>, Option<String>) =
            (row.try_get("signing_secret")?, row.try_get("app_signing_secret")?);
        let app: AppId = column(row, TABLE, key, "app_id")?;
        let (context, sealed) = match (own, of_app) {
            (Some(own), _) => (SealContext { owner: key, column: SIGNING_SECRET_COLUMN }, own),
            (None, Some(of_app)) => (apps::signing_context(&app), of_app),
            (None, None) => {
                let why = format!("app {app} is not declared");
                return Err(inconsistent(TABLE, "signing_secret", key, why));
            }
        };
        let opened = self.rings.signing.open_secret(context, &SealedValue::from_stored(sealed));
        opened.map_err(|error| inconsistent(TABLE, "signing_secret", key, error))
    }

    /// Returns the directory entry of a connection.
    pub async fn directory_entry(
        &self,
        id: ConnectionId,
    ) -> Result<Option<DirectoryEntry>, StoreError> {
        let row = sqlx::query(
            "-- connections.directory_entry
             select version, status, app_id, enterprise_id, team_id, preview_mode, signing_secret,
                    signing_secret_previous
               from connections where id = $1",
        )
        .bind(id.to_string())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let key = id.to_string();
        let sealed = |text| SealedSigningSecret { sealed: SealedValue::from_stored(text) };
        let current: Option<String> = row.try_get("signing_secret")?;
        let previous: Option<String> = row.try_get("signing_secret_previous")?;
        let signing_secrets = current.into_iter().chain(previous).map(sealed).collect();
        Ok(Some(DirectoryEntry::Known(ConnectionRecord {
            version: row.try_get("version")?,
            status: column(&row, TABLE, &key, "status")?,
            app: column(&row, TABLE, &key, "app_id")?,
            enterprise: nullable(&row, TABLE, &key, "enterprise_id")?,
            team: nullable(&row, TABLE, &key, "team_id")?,
            preview_mode: row.try_get("preview_mode")?,
            signing_secrets,
        })))
    }

    /// Returns the connection of an app and installation.
    pub async fn installed_connection(
        &self,
        app: &AppId,
        enterprise: Option<&EnterpriseId>,
        team: Option<&TeamId>,
    ) -> Result<Option<ConnectionId>, StoreError> {
        let row = sqlx::query(
            "-- connections.installed
             select id from connections
              where app_id = $1 and coalesce(team_id, enterprise_id, '') = $2",
        )
        .bind(app.as_str())
        .bind(team.map(TeamId::as_str).or(enterprise.map(EnterpriseId::as_str)).unwrap_or_default())
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| column(&row, TABLE, "installed", "id")).transpose()
    }

    /// Returns the organization of a connection.
    pub async fn connection_org(&self, id: ConnectionId) -> Result<Option<OrgId>, StoreError> {
        let row = sqlx::query("-- connections.org\n select org_id from connections where id = $1");
        let row = row.bind(id.to_string()).fetch_optional(&self.pool).await?;
        row.map(|row| column(&row, TABLE, &id.to_string(), "org_id")).transpose()
    }

    /// Returns a version above all versions of connections, for a tombstone.
    pub async fn next_connection_version(&self) -> Result<i64, StoreError> {
        let next = sqlx::query_scalar(
            "-- connections.next_version\n select nextval('connection_versions')",
        );
        Ok(next.fetch_one(&self.pool).await?)
    }

    /// Returns ids and versions of connections with a version above `after`, in their order, at
    /// most `limit`.
    pub async fn connection_versions(
        &self,
        after: i64,
        limit: i64,
    ) -> Result<Vec<(ConnectionId, i64)>, StoreError> {
        let rows = sqlx::query(
            "-- connections.versions
             select id, version from connections where version > $1 order by version limit $2",
        )
        .bind(after)
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| Ok((column(row, TABLE, row.try_get("id")?, "id")?, row.try_get("version")?)))
            .collect()
    }

    /// Returns the ids that have no connection.
    pub async fn missing_connections(
        &self,
        ids: &[ConnectionId],
    ) -> Result<Vec<ConnectionId>, StoreError> {
        let rows = sqlx::query(
            "-- connections.missing
             select u.id from unnest($1::text[]) u (id)
              where not exists (select from connections c where c.id = u.id)",
        )
        .bind(ids.iter().map(ToString::to_string).collect::<Vec<_>>())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| column(row, TABLE, row.try_get("id")?, "id")).collect()
    }

    /// Subscribes to committed changes of connections.
    pub async fn subscribe_connection_changes(&self) -> Result<ChangeSubscription, StoreError> {
        Ok(ChangeSubscription(self.pool.listen("connections").await?))
    }
}

/// Parses the settings of a row.
pub(super) fn settings(row: &PgRow, key: &str) -> Result<ConnectionSettings, StoreError> {
    let Json(value): Json<serde_json::Value> = row.try_get("settings")?;
    serde_json::from_value(value).map_err(|why| inconsistent(TABLE, "settings", key, why))
}

/// Subscription to changes. Notifications may be lost with the connection to Postgres, so that
/// callers must also poll.
pub struct ChangeSubscription(Listener);

impl ChangeSubscription {
    /// Returns the next changed connection. `None`: the connection to Postgres was lost, and
    /// notifications may be missing.
    pub async fn next(&mut self) -> Result<Option<ConnectionId>, StoreError> {
        let notification = self.0.next().await?;
        Ok(notification.and_then(|n| n.payload().parse().ok()))
    }
}
