//! Limits on guessing link codes: who was wrong too often lately is not even listened to.
//!
//! Counted per person, exactly (one person's attempts take turns), and per workspace, nearly: attempts that run at the
//! same moment may each be let through. A code has 60 bits; the limits leave nobody a chance worth having, and a person
//! who mistypes a few times waits a quarter of an hour at most.

use crate::store::{ConsumeClaim, StoreError};
use sqlx::PgConnection;

/// Wrong codes of one person within the window.
const PERSON_MAX: i32 = 5;
/// Wrong codes of one workspace within the window.
const TEAM_MAX: i32 = 100;
/// Rows whose time is over that one miss sweeps away.
const SWEPT: i64 = 100;

fn keys(claim: &ConsumeClaim) -> (String, String) {
    let team = format!("{}/{}", claim.connection, claim.team);
    (format!("{team}/{}", claim.user), team)
}

/// Whether this person or workspace was wrong too often. One person's attempts wait for each other from here on.
pub(super) async fn exhausted(
    tx: &mut PgConnection,
    claim: &ConsumeClaim,
) -> Result<bool, StoreError> {
    let (person, team) = keys(claim);
    sqlx::query(
        "-- guesses.take_turns\n select pg_advisory_xact_lock(hashtextextended('guesses ' || $1, 0))",
    )
    .bind(&person)
    .execute(&mut *tx)
    .await?;
    // A statement of its own, after the lock: it must see what the one before us wrote.
    Ok(sqlx::query_scalar(
        "-- guesses.exhausted
         select exists (select from link_code_attempts
                         where until > now() and ((who = $1 and misses >= $3) or (who = $2 and misses >= $4)))",
    )
    .bind(&person)
    .bind(&team)
    .bind(PERSON_MAX)
    .bind(TEAM_MAX)
    .fetch_one(tx)
    .await?)
}

/// Writes down a wrong code, and sweeps away what is over.
pub(super) async fn note_miss(
    tx: &mut PgConnection,
    claim: &ConsumeClaim,
) -> Result<(), StoreError> {
    let (person, team) = keys(claim);
    sqlx::query(
        "-- guesses.note
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
        "-- guesses.sweep
         delete from link_code_attempts where who in (
             select who from link_code_attempts where until < now() limit $1 for update skip locked)",
    )
    .bind(SWEPT)
    .execute(tx)
    .await?;
    Ok(())
}
