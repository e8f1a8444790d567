//! Organizations and their agents.

use super::{AGENT_HEADERS_COLUMN, AgentHeaders, CurrentHeaders};
use crate::store::{Store, StoreError, column, inconsistent};
use crate::{
    domain::{AgentId, AgentMode, AgentPolicies, OrgId},
    secrets::{SealContext, SealedValue, Secret},
};
use sqlx::{PgExecutor, Row, postgres::PgRow};
use std::time::Duration;

const SECRET_COLUMN: &str = "agents.secret";
/// Time for which replaced headers stay usable.
const HEADERS_OVERLAP: Duration = Duration::from_secs(24 * 3600);

/// Columns of an [`Agent`].
macro_rules! agent_columns {
    () => {
        "name, mode, url, secret, timeout_ms, max_concurrent, retry_for_ms, keep_for_ms,
         signs_as_slack, max_per_user, headers, edits, overlap,
         case when headers_previous_until > now() then headers_previous end as headers_previous"
    };
}

/// Agent to create or change.
#[derive(Debug)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct NewAgent {
    pub org: OrgId,
    pub id: AgentId,
    pub name: String,
    pub mode: AgentMode,
    pub url: String,
    pub secret: Secret,
    pub timeout: Duration,
    pub max_concurrent: u16,
    pub max_per_user: u32,
    pub retry_for: Option<Duration>,
    pub keep_for: Duration,
    pub signs_as_slack: bool,
    pub headers: AgentHeaders,
    pub policies: AgentPolicies,
}

/// Agent with the fields for a call.
#[derive(Debug, Clone)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct Agent {
    pub org: OrgId,
    pub id: AgentId,
    pub name: String,
    pub mode: AgentMode,
    pub url: String,
    pub secret: Secret,
    /// Timeout of one attempt.
    pub timeout: Duration,
    /// Maximum number of concurrent attempts over all workers.
    pub max_concurrent: u16,
    /// Maximum questions of one person in a minute.
    pub max_per_user: u32,
    /// Time from the first attempt after which a delivery is given up. `None`: the default of the
    /// mode.
    pub retry_for: Option<Duration>,
    /// Maximum wait of a delivery for its first attempt.
    pub keep_for: Duration,
    /// True if webhooks of connections of its own organization are signed with the connection's
    /// signing secret, not with the agent's.
    pub signs_as_slack: bool,
    pub headers: CurrentHeaders,
    pub policies: AgentPolicies,
}

impl NewAgent {
    /// Default timeout of one attempt.
    pub const TIMEOUT: Duration = Duration::from_secs(60);
    /// Default number of concurrent attempts.
    pub const MAX_CONCURRENT: u16 = 16;
    /// Default number of questions of one person in a minute.
    pub const MAX_PER_USER: u32 = 30;
    /// Default wait of a delivery for its first attempt.
    pub const KEEP_FOR: Duration = Duration::from_secs(72 * 3600);
}

impl Store {
    /// Creates an organization, unless it exists.
    pub async fn ensure_organization(&self, id: &OrgId, name: &str) -> Result<(), StoreError> {
        sqlx::query(
            "-- organizations.ensure
             insert into organizations (id, name) values ($1, $2) on conflict (id) do nothing",
        )
        .bind(id.as_str())
        .bind(name)
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Creates or changes an agent.
    pub async fn put_agent(&self, new: &NewAgent) -> Result<(), StoreError> {
        let before = self.agent(&new.org, &new.id).await?;
        let changes_headers = before.is_none_or(|before| !before.has_headers(&new.headers));
        self.put_agent_in(&self.pool, new, changes_headers).await
    }

    pub(in crate::store) async fn put_agent_in(
        &self,
        executor: impl PgExecutor<'_>,
        new: &NewAgent,
        changes_headers: bool,
    ) -> Result<(), StoreError> {
        let owner = owner(&new.org, &new.id);
        let context = SealContext { owner: &owner, column: SECRET_COLUMN };
        let secret = self.rings.tokens.seal_secret(context, &new.secret)?;
        let context = SealContext { owner: &owner, column: AGENT_HEADERS_COLUMN };
        let headers = match new.headers.is_empty() {
            true => None,
            false => Some(self.rings.tokens.seal(context, &new.headers.to_clear())?),
        };
        sqlx::query(
            "-- agents.put
             insert into agents (org_id, id, name, mode, url, secret, timeout_ms, max_concurrent,
                                 retry_for_ms, keep_for_ms, signs_as_slack, max_per_user, headers,
                                 edits, overlap)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)
             on conflict (org_id, id) do update
                set name = excluded.name, mode = excluded.mode, url = excluded.url,
                    secret = excluded.secret, timeout_ms = excluded.timeout_ms,
                    max_concurrent = excluded.max_concurrent,
                    retry_for_ms = excluded.retry_for_ms, keep_for_ms = excluded.keep_for_ms,
                    signs_as_slack = excluded.signs_as_slack,
                    max_per_user = excluded.max_per_user, edits = excluded.edits,
                    overlap = excluded.overlap,
                    headers = case when $16 then excluded.headers else agents.headers end,
                    headers_previous = case when $16 then agents.headers
                        else agents.headers_previous end,
                    headers_previous_until = case when $16 then now() + make_interval(secs => $17)
                        else agents.headers_previous_until end",
        )
        .bind(new.org.as_str())
        .bind(new.id.as_str())
        .bind(&new.name)
        .bind(new.mode.as_str())
        .bind(&new.url)
        .bind(secret.as_str())
        .bind(i32::try_from(new.timeout.as_millis()).unwrap_or(i32::MAX))
        .bind(i32::from(new.max_concurrent))
        .bind(new.retry_for.map(|time| i64::try_from(time.as_millis()).unwrap_or(i64::MAX)))
        .bind(i64::try_from(new.keep_for.as_millis()).unwrap_or(i64::MAX))
        .bind(new.signs_as_slack)
        .bind(i32::try_from(new.max_per_user).unwrap_or(i32::MAX))
        .bind(headers.as_ref().map(SealedValue::as_str))
        .bind(new.policies.edits.as_str())
        .bind(new.policies.overlap.as_str())
        .bind(changes_headers)
        .bind(HEADERS_OVERLAP.as_secs_f64())
        .execute(executor)
        .await?;
        Ok(())
    }

    /// Returns an agent with its opened secret.
    pub async fn agent(&self, org: &OrgId, id: &AgentId) -> Result<Option<Agent>, StoreError> {
        self.agent_in(&self.pool, org, id).await
    }

    pub(in crate::store) async fn agent_in(
        &self,
        executor: impl PgExecutor<'_>,
        org: &OrgId,
        id: &AgentId,
    ) -> Result<Option<Agent>, StoreError> {
        let row = sqlx::query(concat!(
            "-- agents.get\n select ",
            agent_columns!(),
            " from agents where org_id = $1 and id = $2"
        ))
        .bind(org.as_str())
        .bind(id.as_str())
        .fetch_optional(executor)
        .await?;
        row.map(|row| self.agent_of(&row, org.clone(), id.clone())).transpose()
    }

    /// Converts the columns of `agents` in a row.
    pub(in crate::store) fn agent_of(
        &self,
        row: &PgRow,
        org: OrgId,
        id: AgentId,
    ) -> Result<Agent, StoreError> {
        let owner = owner(&org, &id);
        let context = SealContext { owner: &owner, column: SECRET_COLUMN };
        let secret = self
            .rings
            .tokens
            .open_secret(context, &SealedValue::from_stored(row.try_get("secret")?))
            .map_err(|error| inconsistent("agents", "secret", &owner, error))?;
        let headers = |column| self.headers_of(row, &owner, column);
        let headers = CurrentHeaders {
            current: headers("headers")?.unwrap_or_default(),
            previous: headers("headers_previous")?,
        };
        let policies = AgentPolicies {
            edits: column(row, "agents", &owner, "edits")?,
            overlap: column(row, "agents", &owner, "overlap")?,
        };
        let (name, url) = (row.try_get("name")?, row.try_get("url")?);
        let mode = column(row, "agents", &owner, "mode")?;
        let ms = |ms: i64| Duration::from_millis(ms.unsigned_abs());
        let max_concurrent = row.try_get::<i32, _>("max_concurrent")?;
        Ok(Agent {
            timeout: ms(row.try_get::<i32, _>("timeout_ms")?.into()),
            max_concurrent: u16::try_from(max_concurrent).unwrap_or(NewAgent::MAX_CONCURRENT),
            max_per_user: row.try_get::<i32, _>("max_per_user")?.unsigned_abs(),
            retry_for: row.try_get::<Option<i64>, _>("retry_for_ms")?.map(ms),
            keep_for: ms(row.try_get("keep_for_ms")?),
            signs_as_slack: row.try_get("signs_as_slack")?,
            headers,
            policies,
            org,
            id,
            name,
            mode,
            url,
            secret,
        })
    }

    /// Opens headers of a row.
    fn headers_of(
        &self,
        row: &PgRow,
        owner: &str,
        name: &'static str,
    ) -> Result<Option<AgentHeaders>, StoreError> {
        let Some(sealed) = row.try_get::<Option<String>, _>(name)? else { return Ok(None) };
        let context = SealContext { owner, column: AGENT_HEADERS_COLUMN };
        let failed = |error: String| inconsistent("agents", name, owner, error);
        let opened = self.rings.tokens.open(context, &SealedValue::from_stored(sealed));
        let clear = opened.map_err(|error| failed(error.to_string()))?;
        AgentHeaders::from_clear(&clear).map(Some).map_err(failed)
    }
}

/// Returns the key that secrets are bound to. Ids contain no `/`.
fn owner(org: &OrgId, id: &AgentId) -> String {
    format!("{org}/{id}")
}
