//! Every column that holds something sealed, sealed anew with the newest key, while all goes on.
//!
//! In: a column and how far one got. Out: the next step's end, and what did not open. A step reads some rows that another key
//! sealed, and writes each only if nobody else did meanwhile. A value that does not open stays as it is and is named: it holds
//! up nothing else.

use super::{Store, StoreError, connections::BOT_TOKEN_COLUMN, kept::PARKED_COLUMN};
use crate::{
    directory::SIGNING_SECRET_COLUMN,
    secrets::{KeyRing, Place, Sealed},
};
use sqlx::Row;

/// Rows of one step.
const STEP: i64 = 200;

/// A column of sealed values.
#[derive(Debug)]
pub struct SealedColumn {
    /// Table and column, for people.
    pub name: &'static str,
    /// Whether the signing ring seals it; else the tokens ring does.
    signing: bool,
    /// What its values are sealed for.
    place: &'static str,
    /// Rows sealed with another key than `$1`, after the key `$2`, at most `$3`: key, owner, sealed.
    list: &'static str,
    /// Replaces `$2` by `$3` in the row of key `$1`.
    write: &'static str,
    /// Key ids, and how much rests under each.
    count: &'static str,
}

/// All of them. A test compares this list with the schema.
pub const SEALED_COLUMNS: [SealedColumn; 9] = [
    SealedColumn {
        name: "connections.signing_secret",
        signing: true,
        place: SIGNING_SECRET_COLUMN,
        list: "-- rewrap.list_signing_secrets
            select id as key, id as owner, signing_secret as sealed from connections
             where id > $2 and signing_secret not like $1 || ':%' order by id limit $3",
        write: "-- rewrap.signing_secret
            update connections set signing_secret = $3 where id = $1 and signing_secret = $2",
        count: "-- rewrap.count_signing_secrets
            select split_part(signing_secret, ':', 1) as key, count(*) as count from connections group by 1",
    },
    SealedColumn {
        name: "connections.signing_secret_previous",
        signing: true,
        place: SIGNING_SECRET_COLUMN,
        list: "-- rewrap.list_previous_secrets
            select id as key, id as owner, signing_secret_previous as sealed from connections
             where id > $2 and signing_secret_previous not like $1 || ':%' order by id limit $3",
        write: "-- rewrap.previous_secret
            update connections set signing_secret_previous = $3 where id = $1 and signing_secret_previous = $2",
        count: "-- rewrap.count_previous_secrets
            select split_part(signing_secret_previous, ':', 1) as key, count(*) as count from connections
             where signing_secret_previous is not null group by 1",
    },
    SealedColumn {
        name: "connections.bot_token",
        signing: false,
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
        place: "agents.secret",
        list: "-- rewrap.list_agents
            select org_id || '/' || id as key, org_id || '/' || id as owner, secret as sealed from agents
             where org_id || '/' || id > $2 and secret not like $1 || ':%' order by 1 limit $3",
        write: "-- rewrap.agent
            update agents set secret = $3 where org_id || '/' || id = $1 and secret = $2",
        count: "-- rewrap.count_agents
            select split_part(secret, ':', 1) as key, count(*) as count from agents group by 1",
    },
    SealedColumn {
        name: "token_rotations.client_secret",
        signing: false,
        place: "token_rotations.client_secret",
        list: "-- rewrap.list_client_secrets
            select connection_id as key, connection_id as owner, client_secret as sealed from token_rotations
             where connection_id > $2 and client_secret not like $1 || ':%' order by 1 limit $3",
        write: "-- rewrap.client_secret
            update token_rotations set client_secret = $3 where connection_id = $1 and client_secret = $2",
        count: "-- rewrap.count_client_secrets
            select split_part(client_secret, ':', 1) as key, count(*) as count from token_rotations group by 1",
    },
    SealedColumn {
        name: "token_rotations.refresh_token",
        signing: false,
        place: "token_rotations.refresh_token",
        list: "-- rewrap.list_refresh_tokens
            select connection_id as key, connection_id as owner, refresh_token as sealed from token_rotations
             where connection_id > $2 and refresh_token not like $1 || ':%' order by 1 limit $3",
        write: "-- rewrap.refresh_token
            update token_rotations set refresh_token = $3 where connection_id = $1 and refresh_token = $2",
        count: "-- rewrap.count_refresh_tokens
            select split_part(refresh_token, ':', 1) as key, count(*) as count from token_rotations group by 1",
    },
    SealedColumn {
        name: "outbox.request",
        signing: false,
        place: "outbox.request",
        list: "-- rewrap.list_outbox
            select id::text as key, connection_id as owner, request as sealed from outbox
             where id > coalesce(nullif($2, ''), '0')::bigint and request not like $1 || ':%' order by id limit $3",
        write: "-- rewrap.outbox
            update outbox set request = $3 where id = $1::bigint and request = $2",
        count: "-- rewrap.count_outbox
            select split_part(request, ':', 1) as key, count(*) as count from outbox group by 1",
    },
    SealedColumn {
        name: "dead.sealed",
        signing: false,
        place: "dead.sealed",
        list: "-- rewrap.list_dead
            select id::text as key, subject as owner, sealed from dead
             where id > coalesce(nullif($2, ''), '0')::bigint and sealed not like $1 || ':%' order by id limit $3",
        write: "-- rewrap.dead
            update dead set sealed = $3 where id = $1::bigint and sealed = $2",
        count: "-- rewrap.count_dead
            select split_part(sealed, ':', 1) as key, count(*) as count from dead group by 1",
    },
    SealedColumn {
        name: "lane_backlog.sealed",
        signing: false,
        place: PARKED_COLUMN,
        list: "-- rewrap.list_parked
            select scope || '/' || generation || '/' || lane || '/' || sequence as key, connection_id as owner, sealed
              from lane_backlog
             where scope || '/' || generation || '/' || lane || '/' || sequence > $2
               and sealed not like $1 || ':%' order by 1 limit $3",
        write: "-- rewrap.parked
            update lane_backlog set sealed = $3
             where scope || '/' || generation || '/' || lane || '/' || sequence = $1 and sealed = $2",
        count: "-- rewrap.count_parked
            select split_part(sealed, ':', 1) as key, count(*) as count from lane_backlog
             where sealed is not null group by 1",
    },
];

/// What a step did.
#[derive(Debug, Default)]
pub struct Rewrapped {
    /// Where the next step begins; absent when this was the last.
    pub next: Option<String>,
    /// Values that are under the newest key since.
    pub written: u64,
    /// Values that did not open, by column and row.
    pub unopened: Vec<String>,
}

impl Store {
    /// Seals some of a column's values anew, after the key `after`; the first step begins with an empty one.
    pub async fn rewrap(
        &self,
        column: &SealedColumn,
        after: &str,
    ) -> Result<Rewrapped, StoreError> {
        let ring = self.ring_of(column);
        let rows = sqlx::query(column.list)
            .bind(ring.newest())
            .bind(after)
            .bind(STEP)
            .fetch_all(&self.pool)
            .await?;
        let mut done = Rewrapped::default();
        for row in &rows {
            let (key, owner): (String, String) = (row.try_get("key")?, row.try_get("owner")?);
            let old: String = row.try_get("sealed")?;
            let place = Place { owner: &owner, column: column.place };
            match ring.open(place, &Sealed::stored(old.clone())) {
                Ok(clear) => {
                    let new = ring.seal(place, &clear)?;
                    let written = sqlx::query(column.write)
                        .bind(&key)
                        .bind(&old)
                        .bind(new.as_str())
                        .execute(&self.pool)
                        .await?;
                    done.written += written.rows_affected();
                }
                Err(error) => done.unopened.push(format!("{} of row {key}: {error}", column.name)),
            }
            done.next = Some(key);
        }
        if rows.len() < STEP as usize {
            done.next = None;
        }
        Ok(done)
    }

    /// The ids of keys that a column's values are under, and how many are under each.
    pub async fn keys_of(&self, column: &SealedColumn) -> Result<Vec<(String, i64)>, StoreError> {
        let rows = sqlx::query(column.count).fetch_all(&self.pool).await?;
        rows.iter().map(|row| Ok((row.try_get("key")?, row.try_get("count")?))).collect()
    }

    /// Whether a key's id is the newest of the ring that seals a column.
    pub fn is_newest(&self, column: &SealedColumn, key: &str) -> bool {
        self.ring_of(column).newest() == key
    }

    fn ring_of(&self, column: &SealedColumn) -> &KeyRing {
        if column.signing { &self.rings.signing } else { &self.rings.tokens }
    }
}
