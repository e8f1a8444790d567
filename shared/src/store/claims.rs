//! Link claims: minted, and consumed at most once.
//!
//! Consuming decides first and changes after, under the row's lock: a code used in the wrong place is not
//! burnt. Whoever consumed it is written down, so that the same person using it again in the same place hears the
//! same success (the first answer may have been lost on its way).

use super::{Store, StoreError, inconsistent};
use crate::{
    codec::envelope::DedupeKey,
    types::{
        AgentId, ChannelId, ClaimCode, ClaimHash, ConnectionId, OrgId, Outgoing, Surface, TeamId,
        UserId,
    },
};
use sqlx::{PgConnection, Row};
use std::time::Duration;

const TABLE: &str = "link_claims";

/// A claim to be minted.
#[derive(Debug)]
pub struct NewClaim {
    /// Whose agent.
    pub org: OrgId,
    /// Which agent the code binds to.
    pub agent: AgentId,
    /// Where it may be used.
    pub surfaces: Vec<Surface>,
    /// The one connection it is good on; any preview connection, if absent.
    pub connection: Option<ConnectionId>,
    /// How long it is good; at most an hour.
    pub ttl: Duration,
    /// Who asked for it.
    pub created_by: String,
}

/// Somebody typed a code.
pub struct ConsumeClaim {
    /// The code's hash.
    pub code: ClaimHash,
    /// Where: the connection,
    pub connection: ConnectionId,
    /// the workspace,
    pub team: TeamId,
    /// the conversation,
    pub channel: ChannelId,
    /// and what sort that is.
    pub surface: Surface,
    /// Who.
    pub user: UserId,
    /// What is said for each result. Runs inside the transaction that decides it.
    pub reply: ReplyTo,
}

/// What is said for a result.
pub type ReplyTo = Box<dyn Fn(&ClaimResult) -> Vec<Outgoing> + Send + Sync>;

/// What became of a code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClaimResult {
    /// The conversation is bound: now, or by the same person's earlier use of the code.
    Bound {
        /// The agent's name, or its id when it has none.
        agent: String,
    },
    /// No such code, expired, or not for this connection: one answer, so that nothing can be learnt from it.
    NotFound,
    /// Good, but not here. It can still be used where it is allowed.
    WrongSurface {
        /// Where it is.
        allowed: Vec<Surface>,
    },
    /// Somebody else was first, or it was used elsewhere.
    AlreadyUsed,
}

impl ClaimResult {
    /// The word for logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            ClaimResult::Bound { .. } => "bound",
            ClaimResult::NotFound => "not_found",
            ClaimResult::WrongSurface { .. } => "wrong_surface",
            ClaimResult::AlreadyUsed => "already_used",
        }
    }
}

impl Store {
    /// Mints a claim. The code is given here, once, and nowhere else.
    pub async fn mint_claim(&self, new: &NewClaim) -> Result<ClaimCode, StoreError> {
        let code = ClaimCode::random()?;
        let surfaces: Vec<&str> = new.surfaces.iter().map(|s| s.as_str()).collect();
        sqlx::query(
            "-- claims.mint
             insert into link_claims (code_hash, org_id, agent_id, surfaces, connection_id, created_by, expires_at)
             values ($1, $2, $3, $4, $5, $6, now() + make_interval(secs => $7))",
        )
        .bind(code.hash().as_bytes())
        .bind(new.org.as_str())
        .bind(new.agent.as_str())
        .bind(surfaces)
        .bind(new.connection.map(|id| id.to_string()))
        .bind(&new.created_by)
        .bind(new.ttl.as_secs_f64())
        .execute(&self.pool)
        .await?;
        Ok(code)
    }
}

/// Consumes a claim inside a caller's transaction.
pub(super) async fn consume(
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
                coalesce(c.consumed_connection = $2 and c.consumed_team = $3 and c.consumed_channel = $4
                         and c.consumed_user = $5 and b.agent_id is not null, false) as same_use
           from link_claims c
           join agents a on a.org_id = c.org_id and a.id = c.agent_id
           join connections n on n.id = $2 and n.platform = c.platform
           left join channel_bindings b on b.connection_id = $2 and b.team_id = $3 and b.channel_id = $4
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
    let words: Vec<String> = row.try_get("surfaces")?;
    let allowed: Result<Vec<Surface>, String> = words.iter().map(|word| word.parse()).collect();
    let allowed = allowed
        .map_err(|why| inconsistent(TABLE, "surfaces", &format!("{:?}", claim.code), why))?;
    if !allowed.contains(&claim.surface) {
        return Ok(ClaimResult::WrongSurface { allowed });
    }
    // The lock is held since the judgement, so the guard can't miss; it stands here all the same.
    let consumed = sqlx::query(
        "-- claims.consume
         with used as (
             update link_claims
                set consumed_at = now(), consumed_by = $6, consumed_connection = $2, consumed_team = $3,
                    consumed_channel = $4, consumed_user = $5
              where code_hash = $1 and consumed_at is null
             returning org_id, agent_id)
         insert into channel_bindings (connection_id, team_id, channel_id, org_id, agent_id, bound_by)
         select $2, $3, $4, org_id, agent_id, $5 from used
         on conflict (connection_id, team_id, channel_id)
         do update set org_id = excluded.org_id, agent_id = excluded.agent_id, bound_by = excluded.bound_by, bound_at = now()",
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
