//! Failure of the store.

use std::borrow::Cow;

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
