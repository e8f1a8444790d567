//! Postgres, all of it: every statement stands in one of these files, one per aggregate.
//!
//! A statement's first line is its name, as Postgres shows it in `pg_stat_activity`. Guards stand inside the
//! statements, so that running twice and racing change nothing. Transactions never leave this module; what
//! goes in and out are the words of `types`. A row that makes no sense is an error naming table, column and row.
//!
//! No trait: there is one store, and tests use the real one.

mod agents;
mod bindings;
mod claims;
mod connections;
mod declared;
mod deliveries;
mod guesses;
mod identities;
mod lifecycle;
mod maintenance;
mod outbox;
mod partitions;
mod refusals;
mod rewrap;
mod server;
mod session;
mod tokens;
mod webhooks;

pub use agents::{Agent, NewAgent};
pub use bindings::ChatState;
pub use claims::{ClaimResult, ConsumeClaim, MintedClaim, NewClaim, ReplyTo};
pub use connections::{ChangeSubscription, Connection, NewConnection};
pub use declared::{Action, Clash, Declared, DeclaredConnection, DeclaredMember, Plan, PlanStep};
pub use deliveries::*;
pub use identities::NamedAgent;
pub use lifecycle::{ConnectionSummary, DeletedConnection, HistoryEntry};
pub use maintenance::*;
pub use outbox::*;
pub use partitions::*;
pub use rewrap::{Rewrapped, SEALED_COLUMNS, SealedColumn};
pub use server::ServerFacts;
pub use tokens::{DueRotation, NewRotation};
pub use webhooks::*;

use crate::{config, secrets::KeyRing};
pub use session::Plans;
use session::Sessions;
use sqlx::{
    ConnectOptions, Row,
    postgres::{PgConnectOptions, PgRow},
};
use std::{borrow::Cow, str::FromStr};

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

/// What went wrong with Postgres.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Away, refused, or a statement failed.
    #[error("Postgres failed")]
    Postgres(#[from] sqlx::Error),
    /// Several requests were one statement, and all of them failed.
    #[error(transparent)]
    Batch(std::sync::Arc<StoreError>),
    /// A migration failed.
    #[error("migrating Postgres failed")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A row holds what no statement of ours writes.
    #[error("{table}.{column} of row {row} makes no sense: {why}")]
    Inconsistent {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// The row's key.
        row: String,
        /// What is wrong; never the value of a secret.
        why: String,
    },
    /// The operating system gave no randomness.
    #[error("no randomness to seal with")]
    Randomness(#[from] getrandom::Error),
    /// What was asked for is not there.
    #[error("there is no {0}")]
    Missing(String),
    /// The setting is no address.
    #[error("TIDEGATE_POSTGRES_URL is malformed: say postgres://user:password@host/database")]
    Url,
}

impl StoreError {
    /// Whether Postgres refuses a batch for its contents (SQLSTATE classes 21, 22, 23, 54) or its duration:
    /// sending it again changes nothing.
    pub fn refuses_contents(&self) -> bool {
        let contents =
            |code: &str| ["21", "22", "23", "54"].iter().any(|class| code.starts_with(class));
        self.code().is_some_and(|code| contents(&code)) || self.refuses_duration()
    }

    /// Whether Postgres ended a statement that took too long (57014): for what it does, or because Postgres is slow.
    pub fn refuses_duration(&self) -> bool {
        self.code().as_deref() == Some("57014")
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        match self {
            StoreError::Postgres(sqlx::Error::Database(error)) => error.code(),
            StoreError::Batch(error) => error.code(),
            _ => None,
        }
    }
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
        Ok(server::MIGRATIONS.run(&mut connection).await?)
    }
}

fn options(settings: &config::Postgres) -> Result<PgConnectOptions, StoreError> {
    let options = PgConnectOptions::from_str(&settings.url).map_err(|_| StoreError::Url)?;
    Ok(options.application_name("tidegate"))
}

/// Reads a column as one of our types, or says which row makes no sense.
fn column<T>(
    row: &PgRow,
    table: &'static str,
    key: &str,
    column: &'static str,
) -> Result<T, StoreError>
where
    T: FromStr<Err: ToString>,
{
    let text: String = row.try_get(column)?;
    parse(&text, table, key, column)
}

/// Like [`column`], for a column that may be null.
fn nullable<T>(
    row: &PgRow,
    table: &'static str,
    key: &str,
    column: &'static str,
) -> Result<Option<T>, StoreError>
where
    T: FromStr<Err: ToString>,
{
    let text: Option<String> = row.try_get(column)?;
    text.map(|text| parse(&text, table, key, column)).transpose()
}

/// Reads a moment that may be null, as RFC 3339 in UTC.
fn moment(
    row: &PgRow,
    table: &'static str,
    key: &str,
    column: &'static str,
) -> Result<Option<String>, StoreError> {
    let at: Option<time::OffsetDateTime> = row.try_get(column)?;
    let text = at.map(|at| at.format(&time::format_description::well_known::Rfc3339)).transpose();
    text.map_err(|error| inconsistent(table, column, key, error))
}

fn parse<T>(
    text: &str,
    table: &'static str,
    key: &str,
    column: &'static str,
) -> Result<T, StoreError>
where
    T: FromStr<Err: ToString>,
{
    text.parse().map_err(|error: T::Err| inconsistent(table, column, key, error))
}

fn inconsistent(
    table: &'static str,
    column: &'static str,
    row: &str,
    why: impl ToString,
) -> StoreError {
    StoreError::Inconsistent { table, column, row: row.to_owned(), why: why.to_string() }
}

/// A text that Postgres takes: anyone may send us a NUL, and no column holds one.
fn storable(text: &str) -> Cow<'_, str> {
    if text.contains('\0') { text.replace('\0', "\u{fffd}").into() } else { text.into() }
}
