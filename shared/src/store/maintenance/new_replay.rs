//! Creation of replays.

use crate::domain::{Actor, ConnectionId};
use crate::store::{AuditAction, AuditOrg, NewAuditEntry, Store, StoreError, add_audit_entries};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Replay to create.
#[derive(Debug, Clone)]
pub struct NewReplay {
    /// Id, unique per replay.
    pub id: String,
    /// Connection.
    pub connection: ConnectionId,
    /// Earliest time at which the stream stored the webhooks.
    pub from: OffsetDateTime,
    /// End of the range, exclusive.
    pub to: OffsetDateTime,
    /// True if deliveries are enqueued, instead of only recorded.
    pub apply: bool,
}

/// Maximum number of open replays of a connection.
pub const MAX_OPEN_REPLAYS: i64 = 3;

/// Result of the creation of a replay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CreatedReplay {
    /// The replay is open.
    Created,
    /// A replay with the id exists.
    Exists,
    /// The connection has the maximum number of open replays.
    TooMany,
}

impl Store {
    /// Creates a replay. Changes nothing if the id exists, or if the connection has
    /// [`MAX_OPEN_REPLAYS`].
    pub async fn create_replay(
        &self,
        by: &Actor,
        new: &NewReplay,
    ) -> Result<CreatedReplay, StoreError> {
        let mut tx = self.pool.begin().await?;
        sqlx::query(
            "-- replays.lock_connection\n select 1 from connections where id = $1 for update",
        )
        .bind(new.connection.to_string())
        .execute(&mut *tx)
        .await?;
        let (exists, open): (bool, i64) = sqlx::query_as(
            "-- replays.count_open
             select exists (select from replays where id = $1),
                    (select count(*) from replays where connection_id = $2 and state = 'open')",
        )
        .bind(&new.id)
        .bind(new.connection.to_string())
        .fetch_one(&mut *tx)
        .await?;
        if exists {
            return Ok(CreatedReplay::Exists);
        }
        if open >= MAX_OPEN_REPLAYS {
            return Ok(CreatedReplay::TooMany);
        }
        let created = sqlx::query(
            "-- replays.create
             insert into replays (id, connection_id, from_time, to_time, apply)
             values ($1, $2, $3, $4, $5)
             on conflict (id) do nothing",
        )
        .bind(&new.id)
        .bind(new.connection.to_string())
        .bind(new.from)
        .bind(new.to)
        .bind(new.apply)
        .execute(&mut *tx)
        .await?;
        if created.rows_affected() == 0 {
            return Ok(CreatedReplay::Exists);
        }
        let time = |at: OffsetDateTime| at.format(&Rfc3339).unwrap_or_default();
        let org = AuditOrg::OfConnection(new.connection);
        let entry =
            NewAuditEntry::new(AuditAction::ReplayCreate, &new.id, org).after(serde_json::json!({
                "connection": new.connection, "from": time(new.from), "to": time(new.to),
                "apply": new.apply,
            }));
        add_audit_entries(&mut tx, by, &[entry]).await?;
        tx.commit().await?;
        Ok(CreatedReplay::Created)
    }
}
