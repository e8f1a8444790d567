//! Obstacles that keep a process from working although Postgres responds: an old schema, keyrings
//! that open nothing. Readiness and `tidegate doctor` report them.

use crate::{
    directory::SIGNING_SECRET_COLUMN,
    secrets::{KeyRing, SealContext, SealedValue},
    store::{Store, StoreError, connections::BOT_TOKEN_COLUMN},
};
use sqlx::{Row, postgres::PgRow};

/// Maximum rows of a table whose values are opened. One that opens is enough.
const ROWS_MAX: i64 = 8;

/// Column that its values are sealed for.
const AGENT_SECRET_COLUMN: &str = "agents.secret";

/// Obstacle with its remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Obstacle {
    /// The schema is missing.
    #[error("schema is missing in Postgres; run tidegate migrate")]
    NoSchema,
    /// The schema is older than this release.
    #[error("schema has version {found}, older than the required {required}; run tidegate migrate")]
    OldSchema {
        /// Newest applied migration.
        found: i64,
        /// Newest migration of this release.
        required: i64,
    },
    /// The keyring opens none of the stored values.
    #[error("{setting} opens no value of {column}; set it to the keyring that sealed them")]
    WrongKeyring {
        /// Name of the setting.
        setting: &'static str,
        /// Table and column.
        column: &'static str,
    },
}

/// Sealed values with their owners.
type Sealed = Vec<(String, String)>;

impl Store {
    /// Returns the obstacles of a process with this store. Empty keyrings are not checked.
    pub async fn find_obstacles(&self) -> Result<Vec<Obstacle>, StoreError> {
        let required = Self::newest_migration();
        match self.server_facts().await?.schema {
            None => return Ok(vec![Obstacle::NoSchema]),
            Some(found) if found < required => {
                return Ok(vec![Obstacle::OldSchema { found, required }]);
            }
            Some(_) => {}
        }
        let connections = sqlx::query(
            "-- obstacles.connections
             select id as owner, signing_secret, bot_token from connections order by id limit $1",
        );
        let connections = connections.bind(ROWS_MAX).fetch_all(&self.pool).await?;
        let agents = sqlx::query(
            "-- obstacles.agents
             select org_id || '/' || id as owner, secret from agents
              order by org_id, id limit $1",
        );
        let agents = agents.bind(ROWS_MAX).fetch_all(&self.pool).await?;
        let (signing, tokens) = (&self.rings.signing, &self.rings.tokens);
        let (signing_setting, token_setting) =
            ("TIDEGATE_SIGNING_SECRET_KEYRING", "TIDEGATE_TOKEN_KEYRING");
        let checks = [
            (
                signing,
                signing_setting,
                SIGNING_SECRET_COLUMN,
                sealed(&connections, "signing_secret")?,
            ),
            (tokens, token_setting, BOT_TOKEN_COLUMN, sealed(&connections, "bot_token")?),
            (tokens, token_setting, AGENT_SECRET_COLUMN, sealed(&agents, "secret")?),
        ];
        let wrong = checks.into_iter().filter(|(ring, _, column, values)| {
            !ring.is_empty() && !values.is_empty() && !opens_any(ring, column, values)
        });
        Ok(wrong
            .map(|(_, setting, column, _)| Obstacle::WrongKeyring { setting, column })
            .collect())
    }
}

fn sealed(rows: &[PgRow], column: &str) -> Result<Sealed, StoreError> {
    let mut values = Vec::new();
    for row in rows {
        if let Some(value) = row.try_get(column)? {
            values.push((row.try_get("owner")?, value));
        }
    }
    Ok(values)
}

fn opens_any(ring: &KeyRing, column: &'static str, values: &Sealed) -> bool {
    values.iter().any(|(owner, sealed)| {
        let context = SealContext { owner, column };
        ring.open_secret(context, &SealedValue::from_stored(sealed.clone())).is_ok()
    })
}
