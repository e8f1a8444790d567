//! Single connections, with the differences that a declaration would have.

use super::{
    DeclaredConnection, Plan, PlanAction,
    connections::{ExistingConnection, Only, label},
    single::{lock_organization, record},
};
use crate::domain::{Actor, AgentId, ConnectionId, SettingsChange, UserId};
use crate::secrets::Secret;
use crate::store::{Store, StoreError, connections::TABLE, inconsistent};
use sqlx::PgConnection;

/// Index that allows one connection per app and installation.
const ONE_PER_INSTALLATION: &str = "connections_one_per_app_and_team";

/// Change of a connection. `None` leaves a value as it is.
#[derive(Debug, Default)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct ConnectionChange {
    pub agent: Option<Option<AgentId>>,
    /// Replaced signing secrets stay valid for 24 hours.
    pub signing_secret: Option<Secret>,
    /// A new token is a new installation: the connection is active.
    pub bot_token: Option<Option<Secret>>,
    pub bot_user: Option<Option<UserId>>,
    pub settings: SettingsChange,
}

impl Store {
    /// Creates a connection. Returns its id, or the conflict with another one.
    /// [`StoreError::Missing`] for an unknown organization.
    pub async fn create_declared_connection(
        &self,
        by: &Actor,
        new: &DeclaredConnection,
    ) -> Result<Result<ConnectionId, String>, StoreError> {
        let (mut tx, mut plan) = (self.pool.begin().await?, Plan::default());
        if lock_organization(&mut tx, &new.org).await?.is_none() {
            return Err(StoreError::Missing(format!("organization {}", new.org)));
        }
        if let Some(why) = self.missing_owner(&mut tx, new).await? {
            return Ok(Err(why));
        }
        let taken = self.existing_connections(&mut tx, Some(Only::Installation(new)), &[]).await?;
        let place = label(&new.app, new.enterprise.as_ref(), new.team.as_ref());
        // The id of another organization's connection is not disclosed.
        let other = format!("{place} belongs to another organization");
        match taken.first() {
            Some(old) if old.org == new.org => {
                return Ok(Err(format!("{place} already exists as {}", old.id)));
            }
            Some(_) => return Ok(Err(other)),
            None => {}
        }
        match self.apply_connection(&mut tx, new, None, &mut plan).await {
            Err(StoreError::Postgres(sqlx::Error::Database(error)))
                if error.constraint() == Some(ONE_PER_INSTALLATION) =>
            {
                return Ok(Err(format!("{place} was created concurrently")));
            }
            applied => applied?,
        }
        record(&mut tx, by, &plan).await?;
        tx.commit().await?;
        let id = plan.connections.first().copied();
        id.map(Ok).ok_or_else(|| StoreError::Missing(place))
    }

    /// Changes a connection. Returns the action, `None` without a difference, or the conflict.
    /// [`StoreError::Missing`] for an unknown connection.
    pub async fn change_connection(
        &self,
        by: &Actor,
        id: ConnectionId,
        change: ConnectionChange,
    ) -> Result<Result<Option<PlanAction>, String>, StoreError> {
        let (mut tx, mut plan) = (self.pool.begin().await?, Plan::default());
        lock_connection(&mut tx, id).await?;
        let existing = self.existing_connections(&mut tx, Some(Only::Id(id)), &[]).await?.pop();
        let old = existing.ok_or_else(|| StoreError::Missing(format!("connection {id}")))?;
        if old.rotates && change.bot_token.is_some() {
            let why = "the token rotates: install the app again to replace it";
            return Ok(Err(why.to_owned()));
        }
        let new = changed(&old, change)?;
        if let Some(why) = self.missing_owner(&mut tx, &new).await? {
            return Ok(Err(why));
        }
        self.apply_connection(&mut tx, &new, Some(old), &mut plan).await?;
        let action = record(&mut tx, by, &plan).await?;
        tx.commit().await?;
        Ok(Ok(action))
    }
}

async fn lock_connection(tx: &mut PgConnection, id: ConnectionId) -> Result<(), StoreError> {
    let lock = "-- declared.lock_connection\n select 1 from connections where id = $1 for update";
    sqlx::query(lock).bind(id.to_string()).execute(tx).await?;
    Ok(())
}

/// Returns the declaration of a connection with a change.
fn changed(
    old: &ExistingConnection,
    change: ConnectionChange,
) -> Result<DeclaredConnection, StoreError> {
    let key = old.id.to_string();
    let bot_user = old.bot_user.as_deref().map(str::parse).transpose();
    let bot_user = bot_user.map_err(|error| inconsistent(TABLE, "bot_user_id", &key, error))?;
    Ok(DeclaredConnection {
        id: Some(old.id),
        org: old.org.clone(),
        agent: change.agent.unwrap_or_else(|| old.agent.clone()),
        app: old.app.clone(),
        enterprise: old.enterprise.clone(),
        team: old.team.clone(),
        preview_mode: old.preview_mode,
        signing_secret: change.signing_secret.or_else(|| old.signing_secret.clone()),
        bot_token: change.bot_token.unwrap_or_else(|| old.bot_token.clone()),
        bot_user: change.bot_user.unwrap_or(bot_user),
        settings: change.settings.apply(old.settings.clone()),
    })
}
