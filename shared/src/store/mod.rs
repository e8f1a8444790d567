//! Postgres, all of it: every statement stands in one of these files, one per aggregate.
//!
//! A statement's first line is its name, as Postgres shows it in `pg_stat_activity`. Guards stand inside the
//! statements, so that running twice and racing change nothing. Transactions never leave this module; what
//! goes in and out are the words of `types`. A row that makes no sense is an error naming table, column and row.
//!
//! No trait: there is one store, and tests use the real one.

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
pub use declarative::{Action, Clash, Declared, DeclaredConnection, DeclaredMember, Plan, PlanStep};
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
use pool::Sessions;
use row::{column, inconsistent, moment, nullable, storable};
use sqlx::{ConnectOptions, postgres::PgConnectOptions};
use std::str::FromStr;

/// For leases; two, so that one that hangs on a lost link is not the end.
const LEASE_CONNECTIONS: u32 = 2;

/// Postgres, with the rings that open what rests in it.
#[derive(Clone)]
pub struct Store {
    pool: Sessions,
    /// Leases are renewed beside all other work, never behind it.
    leases: Sessions,
    rings: Rings,
}

/// The two key rings (see [`crate::secrets`]).
#[derive(Debug, Clone)]
pub struct Rings {
    /// Opens signing secrets.
    pub signing: KeyRing,
    /// Opens tokens, agents' secrets, payloads of webhooks and requests of the outbox.
    pub tokens: KeyRing,
}

impl Store {
    /// Prepares a pool. Touches nothing yet: a Postgres that is away is waited for where it is needed.
    pub fn new(
        settings: &config::Postgres,
        rings: Rings,
        plans: Plans,
    ) -> Result<Self, StoreError> {
        let options = options(settings)?;
        let leases = Sessions::new(options.clone(), LEASE_CONNECTIONS, plans);
        Ok(Self { pool: Sessions::new(options, settings.connections, plans), leases, rings })
    }

    /// Brings the schema to this release's. Safe to run again, and by several at once: they wait for each other,
    /// for as long as it takes. Needs no keys.
    pub async fn migrate(settings: &config::Postgres) -> Result<(), StoreError> {
        let mut connection = options(settings)?.connect().await?;
        Ok(schema::MIGRATIONS.run(&mut connection).await?)
    }
}

fn options(settings: &config::Postgres) -> Result<PgConnectOptions, StoreError> {
    let options = PgConnectOptions::from_str(&settings.url).map_err(|_| StoreError::Url)?;
    Ok(options.application_name("tidegate"))
}
