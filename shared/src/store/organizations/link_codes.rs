//! Link codes: creation and single use. [`super::link_code_attempts`] limits wrong codes.
//!
//! Consuming checks first and changes later, under the lock of the row, so that a code used in the
//! wrong conversation stays valid. The row stores its user. A repeated use by the same person in
//! the same conversation succeeds again, because the first reply may have been lost.

use super::link_code_attempts;
use crate::store::{Store, StoreError, column, inconsistent, nullable, timestamp};
use crate::{
    codec::envelope::DedupeKey,
    types::{
        AgentId, ChannelId, ClaimCode, ClaimHash, ConnectionId, OrgId, Outgoing, Platform, Surface,
        TeamId, UserId,
    },
};
use serde::Serialize;
use sqlx::{PgConnection, Row, postgres::PgRow};
use std::time::Duration;

const TABLE: &str = "link_codes";

/// Link code to create.
#[derive(Debug)]
pub struct NewClaim {
    /// Owner of the agent.
    pub org: OrgId,
    /// Agent that the code binds.
    pub agent: AgentId,
    /// Platform on which the code is valid.
    pub platform: Platform,
    /// Surfaces on which the code is valid.
    pub surfaces: Vec<Surface>,
    /// Connection on which the code is valid. `None`: any preview connection.
    pub connection: Option<ConnectionId>,
    /// Lifetime, at most an hour.
    pub ttl: Duration,
    /// Requester.
    pub created_by: String,
}

/// Use of a link code.
pub struct ConsumeClaim {
    /// Hash of the code.
    pub code: ClaimHash,
    /// Connection.
    pub connection: ConnectionId,
    /// Workspace.
    pub team: TeamId,
    /// Conversation.
    pub channel: ChannelId,
    /// Surface of the conversation.
    pub surface: Surface,
    /// Person.
    pub user: UserId,
    /// Reply for each result. Called inside the transaction.
    pub reply: ReplyTo,
}

/// Reply for a result.
pub type ReplyTo = Box<dyn Fn(&ClaimResult) -> Vec<Outgoing> + Send + Sync>;

/// Result of using a code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimResult {
    /// The conversation is bound, by this use or an earlier one of the same person.
    Bound {
        /// Name of the agent, or its id.
        agent: String,
    },
    /// Unknown, expired, or for another connection. One result for all, so that it discloses
    /// nothing.
    NotFound,
    /// Valid on other surfaces, where it can still be used.
    WrongSurface {
        /// Surfaces on which the code is valid.
        allowed: Vec<Surface>,
    },
    /// Used by another person or in another conversation.
    AlreadyUsed,
    /// The person or workspace exceeded its limit. The code was not checked.
    TooManyGuesses,
}

/// Link code without its secret, for operators.
#[derive(Debug, Serialize)]
#[allow(missing_docs)] // the columns' names; see the migration
pub struct MintedClaim {
    /// Prefix of the code's hash, which identifies the code.
    pub id: String,
    pub org: OrgId,
    pub agent: AgentId,
    pub platform: Platform,
    pub surfaces: Vec<String>,
    pub connection: Option<ConnectionId>,
    pub created_by: String,
    /// `open`, `used`, `revoked` or `expired`.
    pub state: String,
    pub created_at: Option<String>,
    pub expires_at: Option<String>,
    pub consumed_connection: Option<ConnectionId>,
    pub consumed_channel: Option<ChannelId>,
    pub consumed_user: Option<UserId>,
}

impl ClaimResult {
    /// Returns the result for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            ClaimResult::Bound { .. } => "bound",
            ClaimResult::NotFound => "not_found",
            ClaimResult::WrongSurface { .. } => "wrong_surface",
            ClaimResult::AlreadyUsed => "already_used",
            ClaimResult::TooManyGuesses => "too_many_guesses",
        }
    }
}

impl Store {
    /// Creates a link code. Only this call returns the code. [`StoreError::Missing`] for an unknown
    /// agent or connection.
    pub async fn mint_claim(&self, new: &NewClaim) -> Result<ClaimCode, StoreError> {
        let code = ClaimCode::random()?;
        let surfaces: Vec<&str> = new.surfaces.iter().map(|s| s.as_str()).collect();
        let minted = sqlx::query(
            "-- claims.mint
             insert into link_codes (code_hash, org_id, agent_id, platform, surfaces, connection_id,
                                     created_by, expires_at)
             select $1, org_id, id, $4, $5, $6, $7, now() + make_interval(secs => $8)
               from agents
              where org_id = $2 and id = $3
                and ($6::text is null or exists (select from connections where id = $6
                                                    and platform = $4))",
        )
        .bind(code.hash().as_bytes())
        .bind(new.org.as_str())
        .bind(new.agent.as_str())
        .bind(new.platform.as_str())
        .bind(surfaces)
        .bind(new.connection.map(|id| id.to_string()))
        .bind(&new.created_by)
        .bind(new.ttl.as_secs_f64())
        .execute(&self.pool)
        .await?;
        if minted.rows_affected() == 0 {
            let on =
                new.connection.map(|id| format!(", or no connection {id}")).unwrap_or_default();
            let NewClaim { org, agent, .. } = new;
            return Err(StoreError::Missing(format!("agent {agent} of organization {org}{on}")));
        }
        // Old codes are deleted when the next is created.
        sqlx::query(
            "-- claims.sweep
             delete from link_codes where ctid = any (array (
                 select ctid from link_codes where expires_at < now() - interval '30 days'
                  limit 1000))",
        )
        .execute(&self.pool)
        .await?;
        Ok(code)
    }

    /// Returns the newest link codes, at most `limit`.
    pub async fn claims(&self, limit: i64) -> Result<Vec<MintedClaim>, StoreError> {
        let rows = sqlx::query(
            "-- claims.list
             select substr(encode(code_hash, 'hex'), 1, 16) as id, org_id, agent_id, platform,
                    surfaces, connection_id, created_by, created_at, expires_at,
                    consumed_connection, consumed_channel, consumed_user,
                    case when consumed_at is not null then 'used'
                         when revoked_at is not null then 'revoked'
                         when expires_at <= now() then 'expired' else 'open' end as state
               from link_codes order by created_at desc limit $1",
        )
        .bind(limit)
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(minted_code).collect()
    }

    /// Revokes an open link code. Returns false without one.
    pub async fn revoke_claim(&self, id: &str) -> Result<bool, StoreError> {
        let revoked = sqlx::query(
            "-- claims.revoke
             update link_codes set revoked_at = now(), expires_at = now()
              where substr(encode(code_hash, 'hex'), 1, 16) = $1 and consumed_at is null
                and expires_at > now()",
        )
        .bind(id)
        .execute(&self.pool)
        .await?;
        Ok(revoked.rows_affected() > 0)
    }
}

fn minted_code(row: &PgRow) -> Result<MintedClaim, StoreError> {
    let id: String = row.try_get("id")?;
    Ok(MintedClaim {
        org: column(row, TABLE, &id, "org_id")?,
        agent: column(row, TABLE, &id, "agent_id")?,
        platform: column(row, TABLE, &id, "platform")?,
        surfaces: row.try_get("surfaces")?,
        connection: nullable(row, TABLE, &id, "connection_id")?,
        created_by: row.try_get("created_by")?,
        state: row.try_get("state")?,
        created_at: timestamp(row, TABLE, &id, "created_at")?,
        expires_at: timestamp(row, TABLE, &id, "expires_at")?,
        consumed_connection: nullable(row, TABLE, &id, "consumed_connection")?,
        consumed_channel: nullable(row, TABLE, &id, "consumed_channel")?,
        consumed_user: nullable(row, TABLE, &id, "consumed_user")?,
        id,
    })
}

/// Uses a link code inside the caller's transaction.
pub(in crate::store) async fn consume_link_code(
    tx: &mut PgConnection,
    claim: &ConsumeClaim,
    by: &DedupeKey,
) -> Result<ClaimResult, StoreError> {
    if link_code_attempts::is_over_limit(tx, claim).await? {
        return Ok(ClaimResult::TooManyGuesses);
    }
    let result = check_and_consume(tx, claim, by).await?;
    if result == ClaimResult::NotFound {
        link_code_attempts::record_wrong_code(tx, claim).await?;
    }
    Ok(result)
}

async fn check_and_consume(
    tx: &mut PgConnection,
    claim: &ConsumeClaim,
    by: &DedupeKey,
) -> Result<ClaimResult, StoreError> {
    let connection = claim.connection.to_string();
    let row = sqlx::query(
        "-- claims.judge
         select c.surfaces, c.org_id, c.agent_id, c.consumed_at is not null as consumed,
                c.expires_at > now() as fresh, coalesce(nullif(a.name, ''), a.id) as agent_name,
                coalesce(c.connection_id = $2, n.preview_mode) as here,
                coalesce(c.consumed_connection = $2 and c.consumed_team = $3
                         and c.consumed_channel = $4
                         and c.consumed_user = $5 and b.agent_id is not null, false) as same_use
           from link_codes c
           join agents a on a.org_id = c.org_id and a.id = c.agent_id
           join connections n on n.id = $2 and n.platform = c.platform
           left join channel_bindings b on b.connection_id = $2 and b.team_id = $3
            and b.channel_id = $4
                                       and b.org_id = c.org_id and b.agent_id = c.agent_id
          where c.code_hash = $1
            for update of c",
    )
    .bind(claim.code.as_bytes())
    .bind(&connection)
    .bind(claim.team.as_str())
    .bind(claim.channel.as_str())
    .bind(claim.user.as_str())
    .fetch_optional(&mut *tx)
    .await?;
    let Some(row) = row else { return Ok(ClaimResult::NotFound) };
    let agent: String = row.try_get("agent_name")?;
    if !row.try_get::<bool, _>("here")? {
        return Ok(ClaimResult::NotFound);
    }
    if row.try_get("consumed")? {
        let same_use = row.try_get("same_use")?;
        return Ok(if same_use { ClaimResult::Bound { agent } } else { ClaimResult::AlreadyUsed });
    }
    if !row.try_get::<bool, _>("fresh")? {
        return Ok(ClaimResult::NotFound);
    }
    let surfaces: Vec<String> = row.try_get("surfaces")?;
    let allowed: Result<Vec<Surface>, String> = surfaces.iter().map(|text| text.parse()).collect();
    let allowed = allowed
        .map_err(|why| inconsistent(TABLE, "surfaces", &format!("{:?}", claim.code), why))?;
    if !allowed.contains(&claim.surface) {
        return Ok(ClaimResult::WrongSurface { allowed });
    }
    // The lock makes this guard redundant.
    let consumed = sqlx::query(
        "-- claims.consume
         with used as (
             update link_codes
                set consumed_at = now(), consumed_by = $6, consumed_connection = $2,
                    consumed_team = $3, consumed_channel = $4, consumed_user = $5
              where code_hash = $1 and consumed_at is null
             returning org_id, agent_id)
         insert into channel_bindings (connection_id, team_id, channel_id, org_id, agent_id,
                                       bound_by)
         select $2, $3, $4, org_id, agent_id, $5 from used
         on conflict (connection_id, team_id, channel_id)
         do update set org_id = excluded.org_id, agent_id = excluded.agent_id,
                       bound_by = excluded.bound_by, bound_at = now()",
    )
    .bind(claim.code.as_bytes())
    .bind(&connection)
    .bind(claim.team.as_str())
    .bind(claim.channel.as_str())
    .bind(claim.user.as_str())
    .bind(by.as_str())
    .execute(tx)
    .await?;
    Ok(if consumed.rows_affected() == 1 {
        ClaimResult::Bound { agent }
    } else {
        ClaimResult::AlreadyUsed
    })
}
