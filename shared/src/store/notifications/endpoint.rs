//! Endpoint of notifications: address, secret, events.

use crate::domain::NotificationEvent;
use crate::secrets::{SealContext, SealedValue, Secret};
use crate::store::{Store, StoreError, inconsistent};
use sqlx::{PgConnection, PgExecutor, Row};

pub(in crate::store) const SECRET_COLUMN: &str = "notification_endpoint.secret";
const TABLE: &str = "notification_endpoint";
/// Key of the only row, which the secret is sealed for.
const OWNER: &str = "backend";

/// Backend of the operator that is notified.
#[derive(Debug, Clone)]
pub struct NotificationEndpoint {
    /// Address.
    pub url: String,
    /// Secret that signs notifications.
    pub secret: Secret,
    /// Names of the events that the backend is notified of. Sorted.
    pub events: Vec<String>,
}

impl NotificationEndpoint {
    /// Creates an endpoint.
    pub fn new(url: String, secret: Secret, events: &[NotificationEvent]) -> Self {
        let mut events: Vec<_> = events.iter().map(|event| event.as_str().to_owned()).collect();
        events.sort_unstable();
        events.dedup();
        Self { url, secret, events }
    }
}

impl Store {
    /// Returns the endpoint of notifications.
    pub async fn notification_endpoint(&self) -> Result<Option<NotificationEndpoint>, StoreError> {
        self.notification_endpoint_in(&self.pool).await
    }

    pub(in crate::store) async fn notification_endpoint_in(
        &self,
        executor: impl PgExecutor<'_>,
    ) -> Result<Option<NotificationEndpoint>, StoreError> {
        let row = sqlx::query(
            "-- notification_endpoint.get\n select url, secret, events from notification_endpoint",
        )
        .fetch_optional(executor)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let context = SealContext { owner: OWNER, column: SECRET_COLUMN };
        let sealed = SealedValue::from_stored(row.try_get("secret")?);
        let secret = self.rings.tokens.open_secret(context, &sealed);
        let secret = secret.map_err(|error| inconsistent(TABLE, "secret", OWNER, error))?;
        Ok(Some(NotificationEndpoint {
            url: row.try_get("url")?,
            secret,
            events: row.try_get("events")?,
        }))
    }

    pub(in crate::store) async fn put_notification_endpoint(
        &self,
        executor: impl PgExecutor<'_>,
        new: &NotificationEndpoint,
    ) -> Result<(), StoreError> {
        let context = SealContext { owner: OWNER, column: SECRET_COLUMN };
        let sealed = self.rings.tokens.seal_secret(context, &new.secret)?;
        sqlx::query(
            "-- notification_endpoint.put
             insert into notification_endpoint (url, secret, events) values ($1, $2, $3)
             on conflict (id) do update
                set url = excluded.url, secret = excluded.secret, events = excluded.events",
        )
        .bind(&new.url)
        .bind(sealed.as_str())
        .bind(&new.events)
        .execute(executor)
        .await?;
        Ok(())
    }
}

/// Deletes the endpoint, and the notifications that it has not confirmed.
pub(in crate::store) async fn delete_endpoint(tx: &mut PgConnection) -> Result<(), StoreError> {
    for sql in [
        "-- notification_endpoint.delete\n delete from notification_endpoint",
        "-- notifications.delete_all\n delete from notifications",
    ] {
        sqlx::query(sql).execute(&mut *tx).await?;
    }
    Ok(())
}
