//! Migrations, and facts about server and schema for `tidegate doctor`.

use super::{Store, StoreError};
use sqlx::{Row, migrate::Migrator};

/// Migrations of this release.
pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Facts about the server.
#[derive(Debug)]
pub struct ServerFacts {
    /// Version of Postgres, as 160004.
    pub version: i32,
    /// Clock of the server, in milliseconds since 1970.
    pub now_ms: i64,
    /// Newest applied migration. `None` without a schema.
    pub schema: Option<i64>,
}

impl Store {
    /// Queries facts about the server.
    pub async fn server_facts(&self) -> Result<ServerFacts, StoreError> {
        let row = sqlx::query(
            "-- server.facts
             select current_setting('server_version_num')::int as version,
                    floor(extract(epoch from clock_timestamp()) * 1000)::bigint as now_ms,
                    to_regclass('public._sqlx_migrations') is not null as migrated",
        )
        .fetch_one(&self.pool)
        .await?;
        let mut schema = None;
        if row.try_get("migrated")? {
            schema = sqlx::query_scalar(
                "-- server.schema\n select max(version) from _sqlx_migrations where success",
            )
            .fetch_one(&self.pool)
            .await?;
        }
        let (version, now_ms) = (row.try_get("version")?, row.try_get("now_ms")?);
        Ok(ServerFacts { version, now_ms, schema })
    }

    /// Returns the newest migration of this release.
    pub fn newest_migration() -> i64 {
        MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
    }
}
