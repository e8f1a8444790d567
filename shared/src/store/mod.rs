//! Access to Postgres: all statements, with one folder per aggregate.
//!
//! Workers, the command line and the tests use it, with the types of `types`. The first line of a
//! statement is its name, which `pg_stat_activity` shows. Guards are inside the statements, so that
//! repetitions and races change nothing. Transactions never leave this module. An invalid value is
//! an error that names table, column and row.
//!
//! There is no trait for the store, because there is one implementation and tests use it.

mod connections;
mod declarative;
mod deliveries;
mod error;
mod maintenance;
mod organizations;
mod outbox;
mod partitions;
mod pool;
mod row;
mod schema;
mod webhooks;

pub use connections::*;
pub use declarative::{
    Action, Clash, Declared, DeclaredConnection, DeclaredMember, Plan, PlanStep,
};
pub use deliveries::*;
pub use error::StoreError;
pub use maintenance::*;
pub use organizations::*;
pub use outbox::*;
pub use partitions::*;
pub use schema::ServerFacts;
pub use webhooks::*;

use crate::{config, secrets::KeyRing};
pub use pool::Plans;
use pool::Pool;
use row::{column, inconsistent, nullable, replace_nul, timestamp};
use sqlx::{ConnectOptions, postgres::PgConnectOptions};
use std::str::FromStr;

/// Connections for leases. Two, so that one that hangs does not stop renewals.
const LEASE_CONNECTIONS: u32 = 2;

/// Postgres, with the key rings for its sealed columns.
#[derive(Clone)]
pub struct Store {
    pool: Pool,
    /// Separate connections, so that renewals of leases never wait for other work.
    leases: Pool,
    rings: Rings,
}

/// Key rings for sealed columns (see [`crate::secrets`]).
#[derive(Debug, Clone)]
pub struct Rings {
    /// Ring for signing secrets.
    pub signing: KeyRing,
    /// Ring for tokens, agents' secrets, payloads of webhooks and requests of the outbox.
    pub tokens: KeyRing,
}

impl Store {
    /// Creates the pools without connecting, so that the process starts while Postgres is
    /// unavailable.
    pub fn new(
        settings: &config::Postgres,
        rings: Rings,
        plans: Plans,
    ) -> Result<Self, StoreError> {
        let options = options(settings)?;
        let leases = Pool::new(options.clone(), LEASE_CONNECTIONS, plans);
        Ok(Self { pool: Pool::new(options, settings.connections, plans), leases, rings })
    }

    /// Migrates the schema to this release. Idempotent. Concurrent calls wait for each other
    /// without a limit. Uses no keys.
    pub async fn migrate(settings: &config::Postgres) -> Result<(), StoreError> {
        let mut connection = options(settings)?.connect().await?;
        Ok(schema::MIGRATIONS.run(&mut connection).await?)
    }
}

fn options(settings: &config::Postgres) -> Result<PgConnectOptions, StoreError> {
    let options = PgConnectOptions::from_str(&settings.url).map_err(|_| StoreError::Url)?;
    Ok(options.application_name("tidegate"))
}
