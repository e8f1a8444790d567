//! Expiry of approvals that nobody decided in time.

use super::{ApprovalContent, TABLE, open_content};
use crate::{
    domain::{
        ChannelId, ConnectionId, HeaderToken, MediaType, OutgoingMessage, TeamId, WebhookKind,
    },
    store::{
        DecidedWebhook, Decision, Effects, NewDelivery, Priority, ProcessedAs, Store, StoreError,
        WebhookIds, column, inconsistent, partition_of,
    },
    stream::{DedupKey, Envelope, Lane},
};
use bytes::Bytes;
use sqlx::{Row, postgres::PgRow};
use time::OffsetDateTime;

/// Maximum approvals that one step expires.
const EXPIRED_MAX: i64 = 100;

/// Approval that nobody decided in time.
#[derive(Debug)]
pub struct ExpiredApproval {
    /// Id.
    pub id: String,
    /// Connection.
    pub connection: ConnectionId,
    /// Workspace.
    pub team: TeamId,
    /// Conversation.
    pub channel: ChannelId,
    /// Thread of the message with the buttons.
    pub thread_ts: Option<String>,
    /// Message with the buttons, `None` if it is unknown.
    pub message_ts: Option<String>,
    /// First person who could have decided.
    pub person: String,
    /// Question. `None` if this release cannot read it.
    pub content: Option<ApprovalContent>,
    /// Time, by Postgres's clock.
    pub at: OffsetDateTime,
}

impl Store {
    /// Expires approvals that were not decided in time. Enqueues `message`, which updates the
    /// message with the buttons, and a delivery of `body` to the agent that asked, in mode `reply`.
    /// Returns the number of due approvals.
    ///
    /// `body` is that of an interaction, from which the agent's question is made.
    pub async fn expire_approvals(
        &self,
        message: impl Fn(&ExpiredApproval) -> Option<OutgoingMessage>,
        body: impl Fn(&ExpiredApproval) -> Bytes,
    ) -> Result<usize, StoreError> {
        let rows = sqlx::query(
            "-- approvals.due
             select p.id, p.connection_id, p.partition, p.lane, p.team_id, p.channel_id,
                    p.thread_ts, p.message_ts, p.content, p.allowed[1] as person, p.org_id,
                    p.agent_id, p.session, now() as at, a.id is not null as is_answering
               from approvals p left join agents a on a.org_id = p.org_id and a.id = p.agent_id
                                                  and a.mode = 'reply'
              where p.state = 'open' and p.expires_at <= now() order by p.expires_at limit $1",
        )
        .bind(EXPIRED_MAX)
        .fetch_all(&self.pool)
        .await?;
        for row in &rows {
            let expired = self.expired(row)?;
            let message = message(&expired);
            let webhook = webhook(row, &expired, body(&expired))?;
            self.expire_approval(&expired.id, message.as_ref(), &webhook).await?;
        }
        Ok(rows.len())
    }

    fn expired(&self, row: &PgRow) -> Result<ExpiredApproval, StoreError> {
        let id: String = row.try_get("id")?;
        Ok(ExpiredApproval {
            connection: column(row, TABLE, &id, "connection_id")?,
            team: column(row, TABLE, &id, "team_id")?,
            channel: column(row, TABLE, &id, "channel_id")?,
            thread_ts: row.try_get("thread_ts")?,
            message_ts: row.try_get("message_ts")?,
            person: row.try_get("person")?,
            content: open_content(&self.rings.tokens, row, &id).ok(),
            at: row.try_get("at")?,
            id,
        })
    }
}

/// Returns the webhook that stands for the decision. It is in no stream.
fn webhook(
    row: &PgRow,
    expired: &ExpiredApproval,
    body: Bytes,
) -> Result<DecidedWebhook, StoreError> {
    let ExpiredApproval {
        id, connection, team, channel, thread_ts, message_ts, person, at, ..
    } = expired;
    let delivery = NewDelivery {
        org: row.try_get("org_id")?,
        agent: row.try_get("agent_id")?,
        session: row.try_get("session")?,
        priority: Priority::Background,
        hops: 0,
        has_waiting_notice: false,
    };
    let delivery = row.try_get::<bool, _>("is_answering")?.then_some(delivery);
    let none =
        || HeaderToken::new("none").ok_or_else(|| inconsistent(TABLE, "id", id, "no signature"));
    let envelope = Envelope {
        connection: *connection,
        partition: partition_of(row.try_get("partition")?)?,
        kind: WebhookKind::Interaction,
        lane: Lane::from_bits(row.try_get("lane")?),
        dedup_key: DedupKey::new(*connection, "expired-approval", &[id.as_bytes()]),
        received_at_ms: (at.unix_timestamp() * 1_000).unsigned_abs(),
        media: MediaType::Form,
        signature: none()?,
        timestamp: none()?,
        retry: None,
        traceparent: None,
        reply: None,
        body,
    };
    let ids = WebhookIds {
        team: Some(team.to_string()),
        channel: Some(channel.to_string()),
        thread_ts: thread_ts.clone(),
        ts: message_ts.clone(),
        user: Some(person.clone()),
        ..WebhookIds::default()
    };
    let effects = Effects { delivery, ..Effects::new(ProcessedAs::Approval) };
    let decision = Decision::Apply(Box::new(effects));
    Ok(DecidedWebhook { sequence: 0, stored_at: *at, envelope, ids, decision })
}
