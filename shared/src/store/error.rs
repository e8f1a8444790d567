//! Error type of the store.

use crate::{runtime::telemetry::ErrorChain, secrets::SealError};
use std::borrow::Cow;

/// Failure of a request to Postgres.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Postgres is unavailable, or a statement failed.
    #[error("Postgres request failed: {}", describe(.0))]
    Postgres(sqlx::Error),
    /// The statement of a batch of requests failed, for all of them.
    #[error(transparent)]
    Batch(std::sync::Arc<StoreError>),
    /// A migration failed.
    #[error("failed to migrate Postgres")]
    Migrate(#[from] sqlx::migrate::MigrateError),
    /// A column holds a value that no statement writes.
    #[error("invalid value in {table}.{column} of row {row}: {why}")]
    Inconsistent {
        /// Table.
        table: &'static str,
        /// Column.
        column: &'static str,
        /// Key of the row.
        row: String,
        /// Cause. Never contains the value of a secret.
        why: String,
    },
    /// A value could not be sealed.
    #[error("failed to seal a value")]
    Seal(#[from] SealError),
    /// The operating system provided no randomness.
    #[error("the operating system provided no randomness")]
    Randomness(#[from] getrandom::Error),
    /// The row does not exist.
    #[error("{0} does not exist")]
    Missing(String),
    /// The setting is not a URL of Postgres.
    #[error("TIDEGATE_POSTGRES_URL is malformed; use postgres://user:password@host/database")]
    Url,
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        Self::Postgres(error)
    }
}

/// Describes an error of Postgres with its SQLSTATE and a remedy, or the failure to reach Postgres.
/// sqlx's own text has a line number of Postgres's source.
fn describe(error: &sqlx::Error) -> String {
    let sqlx::Error::Database(answer) = error else { return ErrorChain(error).to_string() };
    let code = answer.code().unwrap_or_default();
    let remedy = match &*code {
        // undefined table, column, function
        "42P01" | "42703" | "42883" => "; run tidegate migrate",
        "42501" => "; run deploy/postgres/roles.sql after each migration, and check the role",
        "28000" | "28P01" | "3D000" => "; check TIDEGATE_POSTGRES_URL",
        "53300" => {
            "; raise max_connections of Postgres, or lower TIDEGATE_POSTGRES_MAX_CONNECTIONS"
        }
        _ => "",
    };
    format!("{} (SQLSTATE {code}){remedy}", answer.message())
}

impl StoreError {
    /// Returns whether Postgres rejected a statement for its contents (SQLSTATE classes 21, 22, 23,
    /// 54), so that sending it again is useless.
    pub fn is_content_rejection(&self) -> bool {
        let contents =
            |code: &str| ["21", "22", "23", "54"].iter().any(|class| code.starts_with(class));
        self.code().is_some_and(|code| contents(&code))
    }

    /// Returns whether Postgres cancelled a statement at its timeout (57014), because of the
    /// statement or a slow server.
    pub fn is_statement_timeout(&self) -> bool {
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
