//! Limits on wrong link codes.
//!
//! Attempts are limited exactly per person, whose attempts are serialized, and approximately per
//! workspace: concurrent attempts may each pass. A code has 60 bits, so that the limits make
//! guessing infeasible. A person who mistypes waits for at most 15 minutes.

use crate::store::{LinkCodeUse, StoreError};
use sqlx::PgConnection;

/// Maximum wrong codes of a person within the window.
const PERSON_CODES_MAX: i32 = 5;
/// Maximum wrong codes of a workspace within the window.
const TEAM_CODES_MAX: i32 = 100;
/// Maximum expired rows that one wrong code deletes.
const EXPIRED_MAX: i64 = 100;

fn keys(code_use: &LinkCodeUse) -> (String, String) {
    let team = format!("{}/{}", code_use.connection, code_use.team);
    (format!("{team}/{}", code_use.user), team)
}

/// Returns whether the person or workspace has exceeded its limit. Serializes the attempts of a
/// person until the end of the transaction.
pub(super) async fn is_over_limit(
    tx: &mut PgConnection,
    code_use: &LinkCodeUse,
) -> Result<bool, StoreError> {
    let (person, team) = keys(code_use);
    sqlx::query(
        "-- link_code_attempts.lock
         select pg_advisory_xact_lock(hashtextextended('guesses ' || $1, 0))",
    )
    .bind(&person)
    .execute(&mut *tx)
    .await?;
    // A second statement, because it must see rows committed before the lock.
    Ok(sqlx::query_scalar(
        "-- link_code_attempts.is_over_limit
         select exists (select from link_code_attempts
                         where until > now() and ((who = $1 and misses >= $3)
                                                  or (who = $2 and misses >= $4)))",
    )
    .bind(&person)
    .bind(&team)
    .bind(PERSON_CODES_MAX)
    .bind(TEAM_CODES_MAX)
    .fetch_one(tx)
    .await?)
}

/// Records a wrong code and deletes expired rows.
pub(super) async fn record_wrong_code(
    tx: &mut PgConnection,
    code_use: &LinkCodeUse,
) -> Result<(), StoreError> {
    let (person, team) = keys(code_use);
    sqlx::query(
        "-- link_code_attempts.record
         insert into link_code_attempts as g (who, misses, until)
         select who, 1, now() + interval '15 minutes' from unnest(array[$1, $2]) as who
         on conflict (who) do update
            set misses = case when g.until > now() then g.misses + 1 else 1 end,
                until = case when g.until > now() then g.until else excluded.until end",
    )
    .bind(person)
    .bind(team)
    .execute(&mut *tx)
    .await?;
    sqlx::query(
        "-- link_code_attempts.sweep
         delete from link_code_attempts where who in (
             select who from link_code_attempts where until < now() limit $1
                for update skip locked)",
    )
    .bind(EXPIRED_MAX)
    .execute(tx)
    .await?;
    Ok(())
}
