//! Edits of messages whose answer has not begun.

use crate::{
    domain::{ChannelId, ConnectionId},
    store::StoreError,
    stream::Lane,
};
use sqlx::PgConnection;

/// Number of newest deliveries of a conversation that are searched for the edited message.
const LOOKBACK: i64 = 1_000;

/// Edit of a message.
#[derive(Debug)]
pub struct EditedMessage {
    /// Connection.
    pub connection: ConnectionId,
    /// Lane of the conversation.
    pub lane: Lane,
    /// Channel.
    pub channel: ChannelId,
    /// Message.
    pub ts: String,
    /// Time of the edit by Slack's clock.
    pub edited_at: String,
}

/// Cancels the run of the earlier text of a message in the caller's transaction. Returns false if
/// the answer has begun, or if the message has no open delivery.
pub(in crate::store) async fn cancel_unanswered(
    tx: &mut PgConnection,
    edit: &EditedMessage,
) -> Result<bool, StoreError> {
    // Waits for statements that end the delivery or save the first part of its answer.
    let tail: Option<i64> = sqlx::query_scalar(
        "-- deliveries.lock_edited
         select tail from delivery_lanes
          where lane = $2 and connection_id = $1 and head <= tail for update",
    )
    .bind(edit.connection.to_string())
    .bind(edit.lane.to_bits())
    .fetch_optional(&mut *tx)
    .await?;
    let Some(tail) = tail else { return Ok(false) };
    let dropped = sqlx::query(
        "-- run_controls.edit
         insert into run_controls (connection_id, channel_id, ts, reason, message_ts)
         select $1, $3, $5, 'edit', $4
          where exists (
                select from deliveries d
                  left join runs r on r.connection_id = d.connection_id and r.lane = d.lane
                                  and r.position = d.position
                 where d.connection_id = $1 and d.lane = $2 and d.position > $6 and d.ts = $4
                   and d.channel_id = $3 and coalesce(r.parts, 0) = 0)",
    )
    .bind(edit.connection.to_string())
    .bind(edit.lane.to_bits())
    .bind(edit.channel.as_str())
    .bind(&edit.ts)
    .bind(&edit.edited_at)
    .bind(tail - LOOKBACK)
    .execute(&mut *tx)
    .await?;
    Ok(dropped.rows_affected() > 0)
}
