//! Access to Postgres: all statements, with one folder per aggregate.
//!
//! Workers, the command line and the tests use it, with the types of `domain`. The first line of a
//! statement is its name, which `pg_stat_activity` shows. Guards are inside the statements, so that
//! repetitions and races change nothing. Transactions never leave this module. An invalid value is
//! an error that names table, column and row.
//!
//! There is no trait for the store, because there is one implementation and tests use it.

mod approvals;
mod apps;
mod audit_log;
mod connections;
mod declarative;
mod deliveries;
mod error;
mod installs;
mod maintenance;
mod notifications;
mod organizations;
mod outbox;
mod partitions;
mod pool;
mod row;
mod runs;
mod schema;
mod webhooks;

pub use approvals::{
    APPROVAL_COLUMN, ApprovalContent, ApprovalDecision, ApprovalOption, ApprovalResult,
    ApprovalUse, AskedApproval, DecidedApproval, ExpiredApproval, NewApproval, ReplyForApproval,
};
pub use apps::{App, AppSummary, MAX_APPS, NewApp};
pub use audit_log::{AuditAction, AuditEntry, AuditLogFilter};
pub use connections::*;
pub use declarative::{
    ApplyMode, ConflictError, ConnectionChange, Declarations, Declared, DeclaredConnection,
    DeclaredMember, MemberRecord, Plan, PlanAction, PlanStep, PlanSummary, SavedMember,
    StepSummary,
};
pub use deliveries::*;
pub use error::StoreError;
pub use installs::*;
pub use maintenance::*;
pub use notifications::*;
pub use organizations::*;
pub use outbox::*;
pub use partitions::*;
pub use runs::*;
pub use schema::{ServerFacts, Transport};
pub use webhooks::*;

use crate::{runtime::config, secrets::KeyRing};
use audit_log::{AuditOrg, NewAuditEntry, StepEntry, add_audit_entries};
pub use pool::PlanMode;
use pool::Pool;
pub use row::replace_nul;
use row::{column, inconsistent, nullable, partition_of, timestamp};
use sqlx::{
    ConnectOptions,
    postgres::{PgConnectOptions, PgSslMode},
};
use std::str::FromStr;

/// Connections for leases. Two, so that a hanging one does not stop renewals.
const LEASE_CONNECTIONS: u32 = 2;

/// Postgres, with the keyrings for its sealed columns.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    /// Separate connections, so that renewals of leases never wait for other work.
    leases: Pool,
    rings: KeyRings,
}

/// Keyrings for sealed columns (see [`crate::secrets`]).
#[derive(Debug, Clone, Default)]
pub struct KeyRings {
    /// Keyring for signing secrets.
    pub signing: KeyRing,
    /// Keyring for tokens, agents' secrets, payloads of webhooks and requests of the outbox.
    pub tokens: KeyRing,
}

impl Store {
    /// Creates the pools without connecting, so that the process starts while Postgres is
    /// unavailable.
    pub fn new(
        settings: &config::PostgresConfig,
        rings: KeyRings,
        plans: PlanMode,
    ) -> Result<Self, StoreError> {
        let options = options(settings)?;
        let leases = Pool::new(options.clone(), LEASE_CONNECTIONS, plans);
        Ok(Self { pool: Pool::new(options, settings.max_connections, plans), leases, rings })
    }

    /// Returns whether the store has a keyring of signing secrets.
    pub fn seals_signing_secrets(&self) -> bool {
        !self.rings.signing.newest_key_id().is_empty()
    }

    /// Migrates the schema to this release. Idempotent. Concurrent calls wait for each other
    /// without a limit. Uses no keys.
    pub async fn migrate(settings: &config::PostgresConfig) -> Result<(), StoreError> {
        let options = options(settings)?;
        let connected = options.connect().await;
        let mut connection = connected.map_err(|error| pool::name_server(&options, error))?;
        Ok(schema::MIGRATIONS.run(&mut connection).await?)
    }
}

/// Returns connect options. TLS is verified unless the URL has an `sslmode` or the host is this
/// machine: `prefer`, the default of libpq, falls back to plaintext and accepts any certificate.
fn options(settings: &config::PostgresConfig) -> Result<PgConnectOptions, StoreError> {
    let options = PgConnectOptions::from_str(&settings.url).map_err(|_| StoreError::Url)?;
    let query = settings.url.split_once('?').map_or("", |(_, query)| query);
    let has_mode = form_urlencoded::parse(query.as_bytes())
        .any(|(key, _)| matches!(&*key, "sslmode" | "ssl-mode"));
    let options = match (has_mode, schema::is_local(&options)) {
        (true, _) => options,
        (false, true) => options.ssl_mode(PgSslMode::Prefer),
        (false, false) => options.ssl_mode(PgSslMode::VerifyFull),
    };
    let options = match &settings.ca_file {
        Some(file) => options.ssl_root_cert(file),
        None => options,
    };
    Ok(options.application_name("tidegate"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verifies_tls_unless_host_is_local() {
        for (url, mode) in [
            ("postgres://u:p@db.example/d", PgSslMode::VerifyFull),
            ("postgres://u:p@10.0.0.7:5432/d?application_name=x", PgSslMode::VerifyFull),
            ("postgres://u@localhost.example/d", PgSslMode::VerifyFull),
            ("postgres://127.0.0.1/d?host=db.example", PgSslMode::VerifyFull),
            ("postgres://u:p@db.example/d?sslmode=disable", PgSslMode::Disable),
            ("postgres://u:p@db.example/d?a=b&ssl-mode=require", PgSslMode::Require),
            ("postgres://u@127.0.0.1/d?sslmode=verify-full", PgSslMode::VerifyFull),
            ("postgres://u@127.0.0.1/d", PgSslMode::Prefer),
            ("postgres://u@[::1]/d", PgSslMode::Prefer),
            ("postgres://u@localhost/d", PgSslMode::Prefer),
            ("postgres://u@%2Fvar%2Frun%2Fpostgresql/d", PgSslMode::Prefer),
            ("postgres:///d?host=/var/run/postgresql", PgSslMode::Prefer),
        ] {
            let settings = config::PostgresConfig {
                url: url.into(),
                ca_file: Some("ca".into()),
                max_connections: 1,
            };
            let options = options(&settings).expect("a URL");
            assert_eq!(format!("{:?}", options.get_ssl_mode()), format!("{mode:?}"), "{url}");
        }
    }
}
