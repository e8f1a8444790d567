//! Migrations, and facts about server and schema for `tidegate doctor`.

use super::{Store, StoreError};
use sqlx::{
    Row,
    migrate::Migrator,
    postgres::{PgConnectOptions, PgSslMode},
};
use std::net::IpAddr;
use time::OffsetDateTime;

/// Migrations of this release.
pub(super) static MIGRATIONS: Migrator = sqlx::migrate!("./migrations");

/// Facts about the server.
#[derive(Debug)]
pub struct ServerFacts {
    /// Version of Postgres, as 160004.
    pub version: i32,
    /// Clock of the server, in milliseconds since 1970.
    pub now_ms: i64,
    /// Protection of the connection to the server.
    pub transport: Transport,
    /// Newest applied migration. `None` without a schema.
    pub schema: Option<i64>,
}

/// Protection of a connection to Postgres.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// The server is on this machine.
    Local,
    /// TLS, with the certificate and its host name verified.
    Verified,
    /// TLS without verification, as `sslmode` permits: an attacker in the network can read it.
    Unverified,
    /// Plaintext, as `sslmode` permits.
    Clear,
}

/// Returns whether a server is on this machine.
pub(super) fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host().trim_matches(['[', ']']);
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

impl Store {
    /// Queries facts about the server.
    pub async fn server_facts(&self) -> Result<ServerFacts, StoreError> {
        let row = sqlx::query(
            "-- server.facts
             select current_setting('server_version_num')::int as version,
                    floor(extract(epoch from clock_timestamp()) * 1000)::bigint as now_ms,
                    (select ssl from pg_stat_ssl where pid = pg_backend_pid()) as tls,
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
        let options = self.pool.connect_options();
        let transport = match (row.try_get("tls")?, options.get_ssl_mode()) {
            (true, PgSslMode::VerifyFull) => Transport::Verified,
            _ if is_local(&options) => Transport::Local,
            (true, _) => Transport::Unverified,
            (false, _) => Transport::Clear,
        };
        Ok(ServerFacts { version, now_ms, transport, schema })
    }

    /// Returns the time by the server's clock.
    pub async fn now(&self) -> Result<OffsetDateTime, StoreError> {
        let now = sqlx::query_scalar("-- server.now\n select clock_timestamp()");
        Ok(now.fetch_one(&self.pool).await?)
    }

    /// Returns the newest migration of this release.
    pub fn newest_migration() -> i64 {
        MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default()
    }
}
