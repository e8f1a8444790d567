//! Erasure of a person, and of an organization's traces in the audit log.
//!
//! Nothing is erased while deliveries or messages of the person are open, because their
//! conversations wait for them. Their numbers are returned, and the caller repeats the erasure.
//!
//! The statements run one by one, and each can be repeated: the person's direct messages are stored
//! with the erasure before rows that identify them are erased.

use super::person_statements::{PERSON, connections_of_team};
use crate::domain::{Actor, ConnectionId, OrgId, TeamId, UserId};
use crate::secrets::{SealContext, SealedValue};
use crate::store::{
    AuditAction, AuditOrg, NewAuditEntry, Store, StoreError, add_audit_entries, column,
    inconsistent, outbox::OUTBOX_REQUEST_COLUMN,
};
use serde::Serialize;
use serde_json::json;
use sqlx::Row;

/// Replacement of the id of an erased person. Valid as the id of a user.
pub const ERASED: &str = "erased";

/// Maximum rows of the audit log per statement.
const STEP_ROWS: i32 = 5_000;
/// Maximum messages to Slack that are read and opened at once.
const STEP_MESSAGES: i64 = 200;

/// Numbers of an erasure in Postgres.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs)] // self-explanatory
pub struct ErasedRows {
    /// Deleted or changed rows.
    pub rows: u64,
    /// Deliveries of the person that have not ended.
    pub open_deliveries: i64,
    /// Messages to the person's direct messages, or that name the person, that are not sent.
    pub open_messages: i64,
}

impl Store {
    /// Erases a person of a workspace, if no delivery and message of the person is open.
    /// Repeatable.
    pub async fn erase_person(
        &self,
        by: &Actor,
        team: &TeamId,
        user: &UserId,
    ) -> Result<ErasedRows, StoreError> {
        let channels = self.store_direct_channels(team, user).await?;
        let connections = self.team_connections(team).await?;
        let open = sqlx::query(concat!(
            "-- erasure.open
             select (select count(*) from deliveries where user_id = $2 and connection_id in ",
            connections_of_team!(),
            ") as deliveries,
                    (select count(*) from outbox where channel_key = any ($3) and connection_id in ",
            connections_of_team!(),
            ") as messages"
        ))
        .bind(team.as_str())
        .bind(user.as_str())
        .bind(&channels)
        .fetch_one(&self.pool)
        .await?;
        let mut erased = ErasedRows {
            rows: 0,
            open_deliveries: open.try_get("deliveries")?,
            open_messages: open.try_get("messages")?,
        };
        if erased.open_messages == 0 {
            for &connection in &connections {
                erased.open_messages += self.count_open_messages(connection, user).await?;
            }
        }
        if erased.open_deliveries + erased.open_messages > 0 {
            return Ok(erased);
        }
        for &connection in &connections {
            erased.rows += self.erase_failed_messages(connection, user).await?;
        }
        for sql in PERSON {
            let query = sqlx::query(sql).bind(team.as_str()).bind(user.as_str()).bind(&channels);
            erased.rows += query.execute(&self.pool).await?.rows_affected();
        }
        let by_person =
            "-- erasure.audit_log\n select * from erase_person_from_audit_log($1, $2, $3)";
        erased.rows += self.erase_from_audit_log(by_person, user.as_str()).await?;
        let mut tx = self.pool.begin().await?;
        // The audit log must not name the erased person.
        let entry = NewAuditEntry::new(AuditAction::PersonErase, ERASED, AuditOrg::None);
        let entry = entry.after(json!({ "rows": erased.rows }));
        add_audit_entries(&mut tx, by, &[entry]).await?;
        tx.commit().await?;
        Ok(erased)
    }

    /// Adds the person's direct messages to the open erasure, and returns all that it has: an earlier
    /// run may have erased the rows that identify some of them.
    async fn store_direct_channels(
        &self,
        team: &TeamId,
        user: &UserId,
    ) -> Result<Vec<String>, StoreError> {
        let stored = sqlx::query_scalar(concat!(
            "-- erasure.direct_channels
             with found as (
                 select distinct channel_id from (
                     select channel_id, user_id, connection_id from delivery_log
                     union all select channel_id, user_id, connection_id from ignored_webhooks
                     union all select channel_id, user_id, connection_id from dead_letters
                     union all select channel_id, user_id, connection_id from deliveries
                     union all
                     select consumed_channel, consumed_user, consumed_connection from link_codes
                     union all select channel_id, bound_by, connection_id from channel_bindings) t
                  where user_id = $2 and channel_id like 'D%' and connection_id in ",
            connections_of_team!(),
            ")
             update erasures
                set direct_channels = array (select unnest(direct_channels)
                                             union select channel_id from found)
              where state = 'open' and team_id = $1 and user_id = $2
             returning direct_channels"
        ))
        .bind(team.as_str())
        .bind(user.as_str())
        .fetch_optional(&self.pool)
        .await?;
        stored.ok_or_else(|| StoreError::Missing("an open erasure of the person".into()))
    }

    /// Counts the messages of a connection that name a person and are not sent.
    async fn count_open_messages(
        &self,
        connection: ConnectionId,
        user: &UserId,
    ) -> Result<i64, StoreError> {
        let (mut after, mut open) = ((i64::MIN, 0_i64), 0);
        loop {
            let rows: Vec<(i64, i64, String, String)> = sqlx::query_as(
                "-- erasure.open_messages
                 select lane, position, dedup_key, request from outbox
                  where connection_id = $1 and (lane, position) > ($2, $3)
                  order by lane, position limit $4",
            )
            .bind(connection.to_string())
            .bind(after.0)
            .bind(after.1)
            .bind(STEP_MESSAGES)
            .fetch_all(&self.pool)
            .await?;
            for (.., key, request) in &rows {
                open += i64::from(self.names_person(connection, key, request, user)?);
            }
            match rows.last() {
                Some(&(lane, position, ..)) => after = (lane, position),
                None => return Ok(open),
            }
        }
    }

    /// Deletes the messages of a connection that name a person and that Slack rejected. Returns
    /// their number.
    async fn erase_failed_messages(
        &self,
        connection: ConnectionId,
        user: &UserId,
    ) -> Result<u64, StoreError> {
        let (mut after, mut erased) = (i64::MIN, 0);
        loop {
            let rows: Vec<(i64, String, String)> = sqlx::query_as(
                "-- erasure.failed_messages
                 select id, dedup_key, request from outbox_failures
                  where connection_id = $1 and id > $2 order by id limit $3",
            )
            .bind(connection.to_string())
            .bind(after)
            .bind(STEP_MESSAGES)
            .fetch_all(&self.pool)
            .await?;
            let Some(&(last, ..)) = rows.last() else { return Ok(erased) };
            after = last;
            let mut ids = Vec::new();
            for (id, key, request) in &rows {
                if self.names_person(connection, key, request, user)? {
                    ids.push(*id);
                }
            }
            let delete = sqlx::query(
                "-- erasure.delete_failed_messages
                 delete from outbox_failures where id = any ($1)",
            );
            erased += delete.bind(ids).execute(&self.pool).await?.rows_affected();
        }
    }

    /// Returns whether the sealed request of a message contains the id of a person. Fails if the
    /// keyring does not open it.
    fn names_person(
        &self,
        connection: ConnectionId,
        dedup_key: &str,
        request: &str,
        user: &UserId,
    ) -> Result<bool, StoreError> {
        let owner = format!("{connection}/{dedup_key}");
        let context = SealContext { owner: &owner, column: OUTBOX_REQUEST_COLUMN };
        let opened = self.rings.tokens.open(context, &SealedValue::from_stored(request.into()));
        let clear = opened.map_err(|why| inconsistent("outbox", "request", &owner, why))?;
        Ok(holds_word(&clear, user.as_str()))
    }

    /// Removes details from the audit log's rows about an organization, and adds an entry. Returns
    /// the number of changed rows.
    pub async fn erase_organization_history(
        &self,
        by: &Actor,
        org: &OrgId,
    ) -> Result<u64, StoreError> {
        let of_org = "-- erasure.organization_audit_log
                      select * from erase_organization_from_audit_log($1, $2, $3)";
        let rows = self.erase_from_audit_log(of_org, org.as_str()).await?;
        let mut tx = self.pool.begin().await?;
        let of = AuditOrg::Org(org.clone());
        let entry = NewAuditEntry::new(AuditAction::OrganizationErase, org, of);
        add_audit_entries(&mut tx, by, &[entry]).await?;
        tx.commit().await?;
        Ok(rows)
    }

    /// Erases in steps of [`STEP_ROWS`] rows of the audit log. Returns the number of changed rows.
    async fn erase_from_audit_log(&self, sql: &'static str, of: &str) -> Result<u64, StoreError> {
        let (mut after, mut rows) = (0_i64, 0);
        loop {
            let query = sqlx::query_as(sql).bind(of).bind(after).bind(STEP_ROWS);
            let (last, erased): (Option<i64>, i64) = query.fetch_one(&self.pool).await?;
            rows += erased.unsigned_abs();
            match last {
                Some(last) => after = last,
                None => return Ok(rows),
            }
        }
    }

    /// Deletes the counts of wrong link codes on a connection.
    pub async fn erase_link_code_attempts(
        &self,
        connection: ConnectionId,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "-- erasure.attempts_of_connection
             delete from link_code_attempts where starts_with(who, $1 || '/')",
        )
        .bind(connection.to_string())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Deletes the row of a connection whose organization is being erased. Returns false if it does
    /// not exist.
    pub async fn delete_erased_connection(&self, id: ConnectionId) -> Result<bool, StoreError> {
        let deleted = sqlx::query_scalar(
            "-- erasure.delete_connection\n select delete_erased_connection($1)",
        );
        Ok(deleted.bind(id.to_string()).fetch_one(&self.pool).await?)
    }

    /// Deletes an organization that is being erased and has no connections. Returns false if it
    /// does not exist.
    pub async fn delete_erased_organization(
        &self,
        by: &Actor,
        org: &OrgId,
    ) -> Result<bool, StoreError> {
        let mut tx = self.pool.begin().await?;
        let deleted = sqlx::query_scalar(
            "-- erasure.delete_organization\n select delete_erased_organization($1)",
        );
        let deleted: bool = deleted.bind(org.as_str()).fetch_one(&mut *tx).await?;
        if deleted {
            let of = AuditOrg::Org(org.clone());
            let entry = NewAuditEntry::new(AuditAction::OrganizationDelete, org, of);
            add_audit_entries(&mut tx, by, &[entry]).await?;
        }
        tx.commit().await?;
        Ok(deleted)
    }

    /// Returns the connections of a workspace or organization of Slack.
    pub async fn team_connections(&self, team: &TeamId) -> Result<Vec<ConnectionId>, StoreError> {
        let rows = sqlx::query(
            "-- erasure.connections
             select id from connections where coalesce(team_id, enterprise_id) = $1 order by id",
        )
        .bind(team.as_str())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| column(row, "connections", "team", "id")).collect()
    }

    /// Returns the connections of an organization.
    pub async fn organization_connections(
        &self,
        org: &OrgId,
    ) -> Result<Vec<ConnectionId>, StoreError> {
        let rows = sqlx::query(
            "-- organizations.connections\n select id from connections where org_id = $1 order by id",
        )
        .bind(org.as_str())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(|row| column(row, "connections", "organization", "id")).collect()
    }
}

/// Returns whether bytes contain an id that is not part of a longer word.
pub fn holds_word(bytes: &[u8], word: &str) -> bool {
    let is_part = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let found = |at: usize| {
        let before = at.checked_sub(1).and_then(|at| bytes.get(at));
        !is_part(before) && !is_part(bytes.get(at + word.len()))
    };
    // An encoded separator ends in a digit or letter: `%22U1`.
    let encoded =
        |at: usize| at >= 3 && bytes[at - 3] == b'%' && !is_part(bytes.get(at + word.len()));
    let mut places = bytes.windows(word.len().max(1)).enumerate();
    places.any(|(at, part)| part == word.as_bytes() && (found(at) || encoded(at)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_whole_ids() {
        for text in ["U1", "user_id=U1&x", "{\"user\":\"U1\"}", "<@U1> hi", "payload=%22U1%22"] {
            assert!(holds_word(text.as_bytes(), "U1"), "{text}");
        }
        for text in ["", "U", "U12", "AU1", "user=U10&", "%22U12"] {
            assert!(!holds_word(text.as_bytes(), "U1"), "{text}");
        }
    }
}
