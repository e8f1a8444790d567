//! Connections: creation, secrets, projection to the directory, notifications. Status changes are
//! in [`admin`], declarations of operators in [`super::declarative`].

mod admin;
mod token_failures;
mod token_rotation;

pub(in crate::store) use admin::delete_row;
pub use admin::{ConnectionSummary, DeletedConnection, HistoryEntry};
pub use token_rotation::{DueRotation, NewRotation};

use super::{Store, StoreError, column, inconsistent, nullable, pool::Listener};
use crate::{
    directory::{Entry, Known, SIGNING_SECRET_COLUMN, SealedSigningSecret},
    secrets::{Place, Sealed, Secret},
    types::{AgentId, AppId, ConnectionId, EnterpriseId, OrgId, Settings, Status, TeamId},
};
use sqlx::{Row, postgres::PgRow, types::Json};
use std::time::Duration;
use time::OffsetDateTime;

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
    pub status: Status,
    pub signing_secret: Secret,
    pub bot_token: Option<Secret>,
    pub bot_user: Option<String>,
    pub settings: Settings,
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
    pub status: Status,
    pub bot_token: Option<Secret>,
    pub bot_user: Option<String>,
    /// Secret that signs webhooks forwarded to an app.
    pub signing_secret: Secret,
    pub settings: Settings,
    pub version: i64,
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
        let place = Place { owner: &id, column: SIGNING_SECRET_COLUMN };
        let signing_secret = self.rings.signing.seal_secret(place, &new.signing_secret)?;
        let place = Place { owner: &id, column: BOT_TOKEN_COLUMN };
        let token =
            new.bot_token.as_ref().map(|t| self.rings.tokens.seal_secret(place, t)).transpose()?;
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
        .bind(token.as_ref().map(Sealed::as_str))
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
        id: ConnectionId,
        new: &Secret,
        overlap: Duration,
    ) -> Result<(), StoreError> {
        let owner = id.to_string();
        let place = Place { owner: &owner, column: SIGNING_SECRET_COLUMN };
        let sealed = self.rings.signing.seal_secret(place, new)?;
        let changed = sqlx::query(
            "-- connections.rotate_signing_secret
             update connections
                set signing_secret = $2, signing_secret_previous = signing_secret,
                    signing_secret_previous_until = now() + make_interval(secs => $3)
              where id = $1",
        )
        .bind(&owner)
        .bind(sealed.as_str())
        .bind(overlap.as_secs_f64())
        .execute(&self.pool)
        .await?;
        if changed.rows_affected() == 0 {
            return Err(StoreError::Missing(format!("connection {id}")));
        }
        Ok(())
    }

    /// Returns a connection with opened tokens. Read-only.
    pub async fn hydrate_connection(
        &self,
        id: ConnectionId,
    ) -> Result<Option<Connection>, StoreError> {
        let row = sqlx::query(
            "-- connections.hydrate
             select org_id, agent_id, enterprise_id, team_id, preview_mode, status, bot_token,
                    bot_user_id, signing_secret, settings, version
               from connections where id = $1",
        )
        .bind(id.to_string())
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| self.connection_of(id, &row)).transpose()
    }

    fn connection_of(&self, id: ConnectionId, row: &PgRow) -> Result<Connection, StoreError> {
        let key = id.to_string();
        let token: Option<String> = row.try_get("bot_token")?;
        let place = Place { owner: &key, column: BOT_TOKEN_COLUMN };
        let bot_token = token
            .map(|sealed| self.rings.tokens.open_secret(place, &Sealed::stored(sealed)))
            .transpose()
            .map_err(|error| inconsistent(TABLE, "bot_token", &key, error))?;
        let place = Place { owner: &key, column: SIGNING_SECRET_COLUMN };
        let signing_secret = self
            .rings
            .signing
            .open_secret(place, &Sealed::stored(row.try_get("signing_secret")?))
            .map_err(|error| inconsistent(TABLE, "signing_secret", &key, error))?;
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

    /// Returns the directory entry of a connection.
    pub async fn directory_entry(&self, id: ConnectionId) -> Result<Option<Entry>, StoreError> {
        let row = sqlx::query(
            "-- connections.directory_entry
             select version, status, app_id, enterprise_id, team_id, preview_mode, signing_secret,
                    signing_secret_previous, signing_secret_previous_until
               from connections where id = $1",
        )
        .bind(id.to_string())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let key = id.to_string();
        let sealed =
            |text: String, until_ms| SealedSigningSecret { sealed: Sealed::stored(text), until_ms };
        let mut signing_secrets = vec![sealed(row.try_get("signing_secret")?, None)];
        let previous: Option<String> = row.try_get("signing_secret_previous")?;
        let until: Option<OffsetDateTime> = row.try_get("signing_secret_previous_until")?;
        if let Some((previous, until)) = previous.zip(until) {
            let until_ms = u64::try_from(until.unix_timestamp_nanos() / 1_000_000)
                .map_err(|e| inconsistent(TABLE, "signing_secret_previous_until", &key, e))?;
            signing_secrets.push(sealed(previous, Some(until_ms)));
        }
        Ok(Some(Entry::Known(Known {
            version: row.try_get("version")?,
            status: column(&row, TABLE, &key, "status")?,
            app: column(&row, TABLE, &key, "app_id")?,
            enterprise: nullable(&row, TABLE, &key, "enterprise_id")?,
            team: nullable(&row, TABLE, &key, "team_id")?,
            preview_mode: row.try_get("preview_mode")?,
            signing_secrets,
        })))
    }

    /// Returns a version above all versions of connections, for a tombstone.
    pub async fn next_connection_version(&self) -> Result<i64, StoreError> {
        let next = sqlx::query_scalar(
            "-- connections.next_version\n select nextval('connection_versions')",
        );
        Ok(next.fetch_one(&self.pool).await?)
    }

    /// Returns ids and versions of all connections, for the directory sync.
    pub async fn connection_versions(&self) -> Result<Vec<(ConnectionId, i64)>, StoreError> {
        let rows = sqlx::query("-- connections.versions\n select id, version from connections")
            .fetch_all(&self.pool)
            .await?;
        rows.iter()
            .map(|row| Ok((column(row, TABLE, row.try_get("id")?, "id")?, row.try_get("version")?)))
            .collect()
    }

    /// Subscribes to committed changes of connections.
    pub async fn connection_changes(&self) -> Result<ChangeSubscription, StoreError> {
        Ok(ChangeSubscription(self.pool.listen("connections").await?))
    }
}

/// Parses the settings of a row.
pub(super) fn settings(row: &PgRow, key: &str) -> Result<Settings, StoreError> {
    let Json(value): Json<serde_json::Value> = row.try_get("settings")?;
    serde_json::from_value(value).map_err(|why| inconsistent(TABLE, "settings", key, why))
}

/// Subscription to changes. Notifications may be lost with the connection to Postgres, so that its
/// user must also poll.
pub struct ChangeSubscription(Listener);

impl ChangeSubscription {
    /// Returns the next changed connection. `None`: the connection to Postgres was lost, and
    /// notifications may be missing.
    pub async fn next(&mut self) -> Result<Option<ConnectionId>, StoreError> {
        let notification = self.0.next().await?;
        Ok(notification.and_then(|n| n.payload().parse().ok()))
    }
}
