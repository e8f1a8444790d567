//! Slack apps: their secrets, and the scopes and URLs of installations by OAuth. Operators declare
//! apps ([`super::declarative`]).

use super::{Store, StoreError, column, inconsistent, maintenance::json, nullable};
use crate::{
    directory::{APP_SIGNING_SECRET_COLUMN, AppEntry, SealedSigningSecret},
    domain::{AgentId, AppId, OrgId},
    secrets::{SealContext, SealedValue, Secret},
};
use serde::{Deserialize, Serialize};
use sqlx::{Row, postgres::PgRow};

pub(super) const TABLE: &str = "apps";
pub(super) const CLIENT_SECRET_COLUMN: &str = "apps.client_secret";
/// Maximum number of apps.
pub const MAX_APPS: usize = 1_000;

/// App to create or change.
#[derive(Debug)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct NewApp {
    pub id: AppId,
    pub name: String,
    pub org: Option<OrgId>,
    pub client_id: String,
    pub client_secret: Secret,
    pub signing_secret: Secret,
    pub scopes: Vec<String>,
    pub optional_scopes: Vec<String>,
    pub redirect_url: String,
    pub return_urls: Vec<String>,
    pub agent: Option<AgentId>,
    pub contact: String,
}

/// App without its secrets, for operators.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct AppSummary {
    pub id: AppId,
    pub name: String,
    pub organization: Option<OrgId>,
    pub client_id: String,
    pub scopes: Vec<String>,
    pub optional_scopes: Vec<String>,
    pub redirect_url: String,
    pub return_urls: Vec<String>,
    pub agent: Option<AgentId>,
    pub contact: String,
    /// Number of connections.
    pub connections: i64,
    /// Time until which the previous client secret is used. Null if it is not.
    pub client_secret_previous_until: Option<String>,
    /// Time until which the previous signing secret verifies. Null if it does not.
    pub signing_secret_previous_until: Option<String>,
    pub created_at: String,
    pub updated_at: String,
}

/// App with the fields for an installation.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct App {
    pub id: AppId,
    pub name: String,
    pub org: Option<OrgId>,
    pub client_id: String,
    /// Valid client secrets, newest first. Two during a rotation.
    pub client_secrets: Vec<Secret>,
    pub scopes: Vec<String>,
    pub optional_scopes: Vec<String>,
    pub redirect_url: String,
    pub return_urls: Vec<String>,
    pub agent: Option<AgentId>,
    pub contact: String,
}

/// Columns of an app's valid signing secrets, of the table `a`.
macro_rules! signing_secret_columns {
    () => {
        "a.signing_secret,
         case when a.signing_secret_previous_until > now() then a.signing_secret_previous end
             as signing_secret_previous"
    };
}

/// Columns of a client secret's owner, of the table `a`.
macro_rules! client_secret_columns {
    () => {
        "a.client_id as app_client_id, a.client_secret as app_client_secret,
         case when a.client_secret_previous_until > now() then a.client_secret_previous end
             as app_client_secret_previous"
    };
}
pub(super) use client_secret_columns;

impl Store {
    /// Returns apps after an id, of all organizations or those that one may install, at most
    /// `limit`.
    pub async fn app_summaries(
        &self,
        org: Option<&OrgId>,
        after: Option<&AppId>,
        limit: i64,
    ) -> Result<Vec<AppSummary>, StoreError> {
        let rows = sqlx::query(
            "-- apps.list
             select to_jsonb(t) as row from (
                 select a.id, a.name, a.org_id as organization, a.client_id, a.scopes,
                        a.optional_scopes, a.redirect_url, a.return_urls, a.agent_id as agent,
                        a.contact,
                        (select count(*) from connections c
                          where c.app_id = a.id and ($1::text is null or c.org_id = $1))
                            as connections,
                        case when a.client_secret_previous_until > now()
                            then a.client_secret_previous_until end
                            as client_secret_previous_until,
                        case when a.signing_secret_previous_until > now()
                            then a.signing_secret_previous_until end
                            as signing_secret_previous_until,
                        a.created_at, a.updated_at
                   from apps a
                  where ($1::text is null or a.org_id is null or a.org_id = $1)
                    and ($2::text is null or a.id > $2)
                  order by a.id limit $3) t",
        )
        .bind(org.map(OrgId::as_str))
        .bind(after.map(AppId::as_str))
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(json).collect()
    }

    /// Returns an app with opened client secrets. Needs the keyring of tokens.
    pub async fn app(&self, id: &AppId) -> Result<Option<App>, StoreError> {
        let row = sqlx::query(concat!(
            "-- apps.get
             select a.id, a.name, a.org_id, a.scopes, a.optional_scopes, a.redirect_url,
                    a.return_urls, a.agent_id, a.contact, ",
            client_secret_columns!(),
            " from apps a where a.id = $1"
        ))
        .bind(id.as_str())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let (client_id, client_secrets) = self.client_credentials(&row, id)?;
        Ok(Some(App {
            id: id.clone(),
            name: row.try_get("name")?,
            org: nullable(&row, TABLE, id.as_str(), "org_id")?,
            client_id,
            client_secrets,
            scopes: row.try_get("scopes")?,
            optional_scopes: row.try_get("optional_scopes")?,
            redirect_url: row.try_get("redirect_url")?,
            return_urls: row.try_get("return_urls")?,
            agent: nullable(&row, TABLE, id.as_str(), "agent_id")?,
            contact: row.try_get("contact")?,
        }))
    }

    /// Returns the redirect URL and the return URLs of an app.
    pub async fn app_addresses(
        &self,
        id: &AppId,
    ) -> Result<Option<(String, Vec<String>)>, StoreError> {
        let query = sqlx::query_as(
            "-- apps.addresses\n select redirect_url, return_urls from apps where id = $1",
        );
        Ok(query.bind(id.as_str()).fetch_optional(&self.pool).await?)
    }

    /// Returns the number of apps that are declared for one organization.
    pub async fn count_apps_of(&self, org: &OrgId) -> Result<i64, StoreError> {
        let query =
            sqlx::query_scalar("-- apps.count_of\n select count(*) from apps where org_id = $1");
        Ok(query.bind(org.as_str()).fetch_one(&self.pool).await?)
    }

    /// Returns whether an app is declared for other organizations than one, or has a connection of
    /// another one.
    pub async fn is_app_of_others(&self, id: &AppId, org: &OrgId) -> Result<bool, StoreError> {
        let query = sqlx::query_scalar(
            "-- apps.is_of_others
             select exists (select from apps where id = $1 and org_id is distinct from $2)
                 or exists (select from connections where app_id = $1 and org_id <> $2)",
        );
        Ok(query.bind(id.as_str()).bind(org.as_str()).fetch_one(&self.pool).await?)
    }

    /// Opens the columns of [`client_secret_columns`].
    pub(super) fn client_credentials(
        &self,
        row: &PgRow,
        app: &AppId,
    ) -> Result<(String, Vec<Secret>), StoreError> {
        let context = SealContext { owner: app.as_str(), column: CLIENT_SECRET_COLUMN };
        let (newest, previous): (String, Option<String>) =
            (row.try_get("app_client_secret")?, row.try_get("app_client_secret_previous")?);
        let open = |sealed| {
            let opened = self.rings.tokens.open_secret(context, &SealedValue::from_stored(sealed));
            opened.map_err(|error| inconsistent(TABLE, "client_secret", app.as_str(), error))
        };
        let secrets: Result<_, _> = std::iter::once(newest).chain(previous).map(open).collect();
        Ok((row.try_get("app_client_id")?, secrets?))
    }

    /// Returns the directory entries of all apps, with their versions.
    pub async fn app_entries(&self) -> Result<Vec<(AppId, AppEntry)>, StoreError> {
        let rows = sqlx::query(concat!(
            "-- apps.entries\n select a.id, a.version, ",
            signing_secret_columns!(),
            " from apps a order by a.id"
        ))
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(entry).collect()
    }
}

fn entry(row: &PgRow) -> Result<(AppId, AppEntry), StoreError> {
    let id: AppId = column(row, TABLE, row.try_get("id")?, "id")?;
    let current: String = row.try_get("signing_secret")?;
    let previous: Option<String> = row.try_get("signing_secret_previous")?;
    let sealed = |text| SealedSigningSecret { sealed: SealedValue::from_stored(text) };
    let signing_secrets = std::iter::once(current).chain(previous).map(sealed).collect();
    Ok((id, AppEntry::Known { version: row.try_get("version")?, signing_secrets }))
}

/// Returns the context that a signing secret of an app is sealed for.
pub(super) fn signing_context(app: &AppId) -> SealContext<'_> {
    SealContext { owner: app.as_str(), column: APP_SIGNING_SECRET_COLUMN }
}

/// Returns the context that a client secret of an app is sealed for.
pub(super) fn client_context(app: &AppId) -> SealContext<'_> {
    SealContext { owner: app.as_str(), column: CLIENT_SECRET_COLUMN }
}
