//! Key rotation: re-encrypts all sealed columns with the newest key of their ring, without
//! downtime.
//!
//! `tidegate keys rewrap` calls it in steps. A step reads rows that another key sealed, and
//! replaces each value only if it did not change meanwhile. A value that does not open is reported
//! and stays. Text columns hold `<key id>:<base64>`. Bytes begin with the length of the key id and
//! the id. Only this prefix is compared, so that no payload is read for its key.

use crate::store::{Store, StoreError, connections::BOT_TOKEN_COLUMN};
use crate::{
    directory::SIGNING_SECRET_COLUMN,
    secrets::{KeyRing, Place, Sealed},
};
use sqlx::Row;

/// Maximum rows per step, for secrets and requests.
const STEP_ROWS: i64 = 200;
/// Maximum rows per step, for payloads of up to 1 MiB.
const STEP_PAYLOADS: i64 = 20;

/// Condition on payloads that another key than `$1` sealed.
macro_rules! payload_of_another_key {
    () => {
        "substring(payload for 1 + length($1)) <> decode(lpad(to_hex(length($1)), 2, '0'), 'hex') ||
        convert_to($1, 'UTF8')"
    };
}

/// Column of sealed values.
#[derive(Debug)]
pub struct SealedColumn {
    /// Table and column.
    pub name: &'static str,
    /// True if the signing ring seals it, instead of the token ring.
    signing: bool,
    /// True if it holds bytes, instead of text.
    bytes: bool,
    /// Column that its values are sealed for.
    place: &'static str,
    /// Query of rows that another key than `$1` sealed, after row key `$2`, at most `$3`: key,
    /// owner, sealed.
    list: &'static str,
    /// Statement that replaces `$2` by `$3` in the row of key `$1`.
    write: &'static str,
    /// Query of key ids and numbers of values.
    count: &'static str,
}

/// All sealed columns. A test compares this list with the schema.
pub const SEALED_COLUMNS: [SealedColumn; 10] = [
    SealedColumn {
        name: "connections.signing_secret",
        signing: true,
        bytes: false,
        place: SIGNING_SECRET_COLUMN,
        list: "-- rewrap.list_signing_secrets
            select id as key, id as owner, signing_secret as sealed from connections
             where id > $2 and signing_secret not like $1 || ':%' order by id limit $3",
        write: "-- rewrap.signing_secret
            update connections set signing_secret = $3 where id = $1 and signing_secret = $2",
        count: "-- rewrap.count_signing_secrets
            select split_part(signing_secret, ':', 1) as key, count(*) as count from connections
             group by 1",
    },
    SealedColumn {
        name: "connections.signing_secret_previous",
        signing: true,
        bytes: false,
        place: SIGNING_SECRET_COLUMN,
        list: "-- rewrap.list_previous_secrets
            select id as key, id as owner, signing_secret_previous as sealed from connections
             where id > $2 and signing_secret_previous not like $1 || ':%' order by id limit $3",
        write: "-- rewrap.previous_secret
            update connections set signing_secret_previous = $3 where id = $1
               and signing_secret_previous = $2",
        count: "-- rewrap.count_previous_secrets
            select split_part(signing_secret_previous, ':', 1) as key, count(*) as count
              from connections
             where signing_secret_previous is not null group by 1",
    },
    SealedColumn {
        name: "connections.bot_token",
        signing: false,
        bytes: false,
        place: BOT_TOKEN_COLUMN,
        list: "-- rewrap.list_bot_tokens
            select id as key, id as owner, bot_token as sealed from connections
             where id > $2 and bot_token not like $1 || ':%' order by id limit $3",
        write: "-- rewrap.bot_token
            update connections set bot_token = $3 where id = $1 and bot_token = $2",
        count: "-- rewrap.count_bot_tokens
            select split_part(bot_token, ':', 1) as key, count(*) as count from connections
             where bot_token is not null group by 1",
    },
    SealedColumn {
        name: "agents.secret",
        signing: false,
        bytes: false,
        place: "agents.secret",
        list: "-- rewrap.list_agents
            select org_id || '/' || id as key, org_id || '/' || id as owner, secret as sealed
              from agents
             where org_id || '/' || id > $2 and secret not like $1 || ':%' order by 1 limit $3",
        write: "-- rewrap.agent
            update agents set secret = $3 where org_id || '/' || id = $1 and secret = $2",
        count: "-- rewrap.count_agents
            select split_part(secret, ':', 1) as key, count(*) as count from agents group by 1",
    },
    SealedColumn {
        name: "token_rotations.client_secret",
        signing: false,
        bytes: false,
        place: "token_rotations.client_secret",
        list: "-- rewrap.list_client_secrets
            select connection_id as key, connection_id as owner, client_secret as sealed
              from token_rotations
             where connection_id > $2 and client_secret not like $1 || ':%' order by 1 limit $3",
        write: "-- rewrap.client_secret
            update token_rotations set client_secret = $3 where connection_id = $1
               and client_secret = $2",
        count: "-- rewrap.count_client_secrets
            select split_part(client_secret, ':', 1) as key, count(*) as count from token_rotations
             group by 1",
    },
    SealedColumn {
        name: "token_rotations.refresh_token",
        signing: false,
        bytes: false,
        place: "token_rotations.refresh_token",
        list: "-- rewrap.list_refresh_tokens
            select connection_id as key, connection_id as owner, refresh_token as sealed
              from token_rotations
             where connection_id > $2 and refresh_token not like $1 || ':%' order by 1 limit $3",
        write: "-- rewrap.refresh_token
            update token_rotations set refresh_token = $3 where connection_id = $1
               and refresh_token = $2",
        count: "-- rewrap.count_refresh_tokens
            select split_part(refresh_token, ':', 1) as key, count(*) as count from token_rotations
             group by 1",
    },
    SealedColumn {
        name: "outbox.request",
        signing: false,
        bytes: false,
        place: "outbox.request",
        list: "-- rewrap.list_outbox
            select id::text as key, connection_id || '/' || dedup_key as owner, request as sealed
              from outbox
             where id > coalesce(nullif($2, ''), '0')::bigint and request not like $1 || ':%'
             order by id limit $3",
        write: "-- rewrap.outbox
            update outbox set request = $3 where id = $1::bigint and request = $2",
        count: "-- rewrap.count_outbox
            select split_part(request, ':', 1) as key, count(*) as count from outbox group by 1",
    },
    SealedColumn {
        name: "outbox_failures.request",
        signing: false,
        bytes: false,
        place: "outbox.request",
        list: "-- rewrap.list_outbox_failures
            select id::text as key, connection_id || '/' || dedup_key as owner, request as sealed
              from outbox_failures
             where id > coalesce(nullif($2, ''), '0')::bigint and request not like $1 || ':%'
             order by id limit $3",
        write: "-- rewrap.outbox_failure
            update outbox_failures set request = $3 where id = $1::bigint and request = $2",
        count: "-- rewrap.count_outbox_failures
            select split_part(request, ':', 1) as key, count(*) as count from outbox_failures
             group by 1",
    },
    SealedColumn {
        name: "deliveries.payload",
        signing: false,
        bytes: true,
        place: "webhook.payload",
        list: concat!(
            "-- rewrap.list_deliveries
            select connection_id || '/' || lane || '/' || position || '/' || part as key,
                   dedup_key as owner, payload as sealed
              from deliveries
             where (connection_id, lane, position, part)
                       > (split_part($2, '/', 1),
                          coalesce(nullif(split_part($2, '/', 2), ''), '0')::bigint,
                          coalesce(nullif(split_part($2, '/', 3), ''), '0')::bigint,
                          coalesce(nullif(split_part($2, '/', 4), ''), '0')::smallint)
               and ",
            payload_of_another_key!(),
            " order by connection_id, lane, position, part limit $3"
        ),
        write: "-- rewrap.delivery
            update deliveries set payload = $3
             where connection_id = split_part($1, '/', 1) and lane = split_part($1, '/', 2)::bigint
               and position = split_part($1, '/', 3)::bigint
               and part = split_part($1, '/', 4)::smallint and payload = $2",
        count: "-- rewrap.count_deliveries
            select convert_from(substring(payload from 2 for get_byte(substring(payload for 1), 0)),
                   'UTF8') as key, count(*) as count
              from deliveries group by 1",
    },
    SealedColumn {
        name: "dead_letters.payload",
        signing: false,
        bytes: true,
        place: "webhook.payload",
        list: concat!(
            "-- rewrap.list_dead_letters
            select id::text as key, coalesce(dedup_key, subject || '#' || generation || '/' ||
                   sequence) as owner,
                   payload as sealed
              from dead_letters
             where id > coalesce(nullif($2, ''), '0')::bigint and ",
            payload_of_another_key!(),
            " order by id limit $3"
        ),
        write: "-- rewrap.dead_letter
            update dead_letters set payload = $3 where id = $1::bigint and payload = $2",
        count: "-- rewrap.count_dead_letters
            select convert_from(substring(payload from 2 for get_byte(substring(payload for 1), 0)),
                   'UTF8') as key, count(*) as count
              from dead_letters where payload is not null group by 1",
    },
];

/// Result of a step.
#[derive(Debug, Default)]
pub struct Rewrapped {
    /// Start of the next step. `None` after the last.
    pub next: Option<String>,
    /// Number of re-encrypted values.
    pub written: u64,
    /// Values that did not open, by column and row.
    pub unopened: Vec<String>,
}

impl Store {
    /// Re-encrypts a step of a column's values, after the row key `after`, which is empty for the
    /// first step.
    pub async fn rewrap(
        &self,
        column: &SealedColumn,
        after: &str,
    ) -> Result<Rewrapped, StoreError> {
        let ring = self.ring_of(column);
        let limit = if column.bytes { STEP_PAYLOADS } else { STEP_ROWS };
        let rows = sqlx::query(column.list)
            .bind(ring.newest())
            .bind(after)
            .bind(limit)
            .fetch_all(&self.pool)
            .await?;
        let mut done = Rewrapped::default();
        for row in &rows {
            let (key, owner): (String, String) = (row.try_get("key")?, row.try_get("owner")?);
            let place = Place { owner: &owner, column: column.place };
            let write = sqlx::query(column.write).bind(&key);
            let write = if column.bytes {
                let old: Vec<u8> = row.try_get("sealed")?;
                match ring.open_bytes(place, &old) {
                    Ok(clear) => Ok(write.bind(old).bind(ring.seal_bytes(place, &clear)?)),
                    Err(error) => Err(error),
                }
            } else {
                let old = Sealed::stored(row.try_get("sealed")?);
                match ring.open(place, &old) {
                    Ok(clear) => {
                        let new = ring.seal(place, &clear)?;
                        Ok(write.bind(old.as_str().to_owned()).bind(new.as_str().to_owned()))
                    }
                    Err(error) => Err(error),
                }
            };
            match write {
                Ok(write) => done.written += write.execute(&self.pool).await?.rows_affected(),
                Err(error) => done.unopened.push(format!("{} of row {key}: {error}", column.name)),
            }
            done.next = Some(key);
        }
        if (rows.len() as i64) < limit {
            done.next = None;
        }
        Ok(done)
    }

    /// Returns the key ids of a column's values, and the number of values of each.
    pub async fn keys_of(&self, column: &SealedColumn) -> Result<Vec<(String, i64)>, StoreError> {
        let rows = sqlx::query(column.count).fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((row.try_get("key")?, row.try_get("count")?))).collect()
    }

    /// Returns whether a key is the newest of the column's ring.
    pub fn is_newest(&self, column: &SealedColumn, key: &str) -> bool {
        self.ring_of(column).newest() == key
    }

    fn ring_of(&self, column: &SealedColumn) -> &KeyRing {
        if column.signing { &self.rings.signing } else { &self.rings.tokens }
    }
}
