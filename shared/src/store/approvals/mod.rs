//! Approvals: questions of agents to people, each decided by one click.
//!
//! Dispatch adds a row in the transaction that ends the asking delivery. Intake decides it in the
//! transaction that moves the cursor, under the lock of the row, so that only one click counts, and
//! enqueues the decision for the agent that asked. Maintenance expires undecided approvals, and
//! enqueues the decision `expired`.

mod decide;
mod expire;

pub(super) use decide::decide_approval;
pub use expire::ExpiredApproval;

use super::{Store, StoreError, inconsistent};
use crate::{
    domain::{ChannelId, ConnectionId, OutgoingMessage, TeamId, UserId},
    secrets::{KeyRing, SealContext, SealedValue},
};
use serde::{Deserialize, Serialize};
use sqlx::{PgConnection, Row, postgres::PgRow};
use std::time::Duration;

const TABLE: &str = "approvals";
/// Column that the content is sealed for.
pub const APPROVAL_COLUMN: &str = "approvals.content";
/// Maximum open approvals of an agent.
const OPEN_MAX: i64 = 1_000;
/// Decision for the agent when nobody decided in time.
const EXPIRED: &str = "expired";

/// Decrypted question of an agent to people.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalContent {
    /// Text of the question.
    pub prompt: String,
    /// Answers to choose from.
    pub options: Vec<ApprovalOption>,
}

/// Answer to choose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalOption {
    /// Id for the agent.
    pub id: String,
    /// Text of the button.
    pub label: String,
    /// Slack's style of the button: `primary`, `danger`, or empty.
    #[serde(default)]
    pub style: String,
}

/// Approval to add.
#[derive(Debug, Clone)]
pub struct NewApproval {
    id: String,
    connection: ConnectionId,
    team: TeamId,
    channel: ChannelId,
    thread_ts: Option<String>,
    run: String,
    ask: String,
    sealed: String,
    allowed: Vec<String>,
    expires_in: Duration,
    delivery: DeliveryColumns,
}

/// Columns that an approval takes from the delivery of its run.
#[derive(Debug, Clone)]
struct DeliveryColumns {
    partition: i16,
    lane: i64,
    org: String,
    agent: String,
    session: i64,
}

/// Question of a run, for [`Store::new_approval`].
#[derive(Debug)]
pub struct AskedApproval<'a> {
    /// Run that asks.
    pub run: &'a str,
    /// Id that the agent gave its question.
    pub ask: &'a str,
    /// Workspace.
    pub team: &'a TeamId,
    /// Conversation.
    pub channel: &'a ChannelId,
    /// Thread of the message with the buttons.
    pub thread_ts: Option<&'a str>,
    /// Question.
    pub content: &'a ApprovalContent,
    /// People who may decide. At least one.
    pub allowed: &'a [String],
    /// Time after which the approval expires.
    pub expires_in: Duration,
}

/// Click on a button of an approval.
pub struct ApprovalUse {
    /// Id of the approval, from the button.
    pub id: String,
    /// Connection.
    pub connection: ConnectionId,
    /// Conversation.
    pub channel: ChannelId,
    /// Message with the button.
    pub message_ts: String,
    /// Workspace of the person.
    pub team: TeamId,
    /// Person.
    pub user: UserId,
    /// Number of the button.
    pub option: usize,
    /// Reply for each result. Called inside the transaction.
    pub reply: ReplyForApproval,
}

/// Reply for a result.
pub type ReplyForApproval = Box<dyn Fn(&ApprovalResult) -> Vec<OutgoingMessage> + Send + Sync>;

/// Result of a click.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApprovalResult {
    /// This click decided.
    Decided {
        /// Question.
        content: ApprovalContent,
        /// Decision.
        decision: ApprovalDecision,
    },
    /// Another click decided before.
    AlreadyDecided(ApprovalDecision),
    /// The time to decide is over.
    Expired,
    /// The person is not allowed to decide.
    NotAllowed,
    /// No such approval in this conversation, or one that was deleted.
    Unknown,
}

/// Decision on an approval.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApprovalDecision {
    /// Chosen option.
    pub option: ApprovalOption,
    /// Person who decided.
    pub by: String,
    /// Time of the decision, in seconds since 1970.
    pub at: i64,
}

/// Decided approval, for its agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecidedApproval {
    /// Run that asked.
    pub run: String,
    /// Id that the agent gave its question.
    pub ask: String,
    /// Id of the chosen option, or `expired`.
    pub decision: String,
    /// Person who decided. `None` if nobody decided in time.
    pub by: Option<String>,
}

impl NewApproval {
    /// Returns the id: the value of the buttons.
    pub fn id(&self) -> &str {
        &self.id
    }
}

impl Store {
    /// Returns an approval to add with the end of the delivery of its run.
    pub fn new_approval(
        &self,
        delivery: &super::ClaimedDelivery,
        asked: &AskedApproval<'_>,
    ) -> Result<NewApproval, StoreError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        let id = bytes.iter().fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
        let clear = serde_json::to_vec(asked.content)
            .map_err(|error| inconsistent(TABLE, "content", &id, error))?;
        let sealed = self.rings.tokens.seal(context(&id), &clear)?.as_str().to_owned();
        Ok(NewApproval {
            id,
            connection: delivery.key.connection,
            team: asked.team.clone(),
            channel: asked.channel.clone(),
            thread_ts: asked.thread_ts.map(str::to_owned),
            run: asked.run.to_owned(),
            ask: asked.ask.to_owned(),
            sealed,
            allowed: asked.allowed.to_vec(),
            expires_in: asked.expires_in,
            delivery: DeliveryColumns {
                partition: delivery.partition.number() as i16,
                lane: delivery.key.lane.to_bits(),
                org: delivery.org.clone(),
                agent: delivery.agent.clone(),
                session: delivery.session,
            },
        })
    }

    /// Returns the decision of an approval, `None` if it is open or was deleted.
    pub async fn decided_approval(
        &self,
        connection: ConnectionId,
        id: &str,
    ) -> Result<Option<DecidedApproval>, StoreError> {
        let row = sqlx::query(
            "-- approvals.decided
             select run_id, ask_id, coalesce(decision, $3) as decision, decided_by from approvals
              where id = $1 and connection_id = $2 and state in ('decided', 'expired')",
        )
        .bind(id)
        .bind(connection.to_string())
        .bind(EXPIRED)
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| {
            Ok(DecidedApproval {
                run: row.try_get("run_id")?,
                ask: row.try_get("ask_id")?,
                decision: row.try_get("decision")?,
                by: row.try_get("decided_by")?,
            })
        })
        .transpose()
    }

    /// Records the message with the buttons of an approval.
    pub async fn record_approval_message(
        &self,
        connection: ConnectionId,
        id: &str,
        ts: &str,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "-- approvals.record_message
             update approvals set message_ts = $3 where id = $1 and connection_id = $2",
        )
        .bind(id)
        .bind(connection.to_string())
        .bind(ts)
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

/// Adds an approval in the caller's transaction. Returns false if the agent has too many.
pub(super) async fn add_approval(
    tx: &mut PgConnection,
    new: &NewApproval,
) -> Result<bool, StoreError> {
    let DeliveryColumns { partition, lane, org, agent, session } = &new.delivery;
    let added = sqlx::query(
        "-- approvals.add
         insert into approvals (id, connection_id, partition, lane, channel_id, org_id, agent_id,
                                session, run_id, ask_id, content, allowed, expires_at, team_id,
                                thread_ts)
         select $1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12,
                now() + make_interval(secs => $13), $15, $16
          where (select count(*) from (
                    select from approvals where org_id = $6 and agent_id = $7 and state = 'open'
                     limit $14) a) < $14",
    )
    .bind(&new.id)
    .bind(new.connection.to_string())
    .bind(partition)
    .bind(lane)
    .bind(new.channel.as_str())
    .bind(org)
    .bind(agent)
    .bind(session)
    .bind(&new.run)
    .bind(&new.ask)
    .bind(&new.sealed)
    .bind(&new.allowed)
    .bind(new.expires_in.as_secs_f64())
    .bind(OPEN_MAX)
    .bind(new.team.as_str())
    .bind(&new.thread_ts)
    .execute(tx)
    .await?;
    Ok(added.rows_affected() > 0)
}

fn open_content(ring: &KeyRing, row: &PgRow, id: &str) -> Result<ApprovalContent, StoreError> {
    let sealed = SealedValue::from_stored(row.try_get("content")?);
    let clear = ring.open(context(id), &sealed);
    let clear = clear.map_err(|error| inconsistent(TABLE, "content", id, error))?;
    serde_json::from_slice(&clear).map_err(|error| inconsistent(TABLE, "content", id, error))
}

fn context(id: &str) -> SealContext<'_> {
    SealContext { owner: id, column: APPROVAL_COLUMN }
}
