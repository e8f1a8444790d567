//! Run controls: stops, deletions, edits and interruptions, which apply only to runs of older
//! questions.
//!
//! Intake writes them with its cursor, whether a run is known or not. Workers read the recent ones
//! for their runs, and each attempt queries its own.

use crate::domain::{ChannelId, ConnectionId};
use crate::store::{Store, StoreError, column};
use sqlx::Row;
use std::time::Duration;

/// Maximum controls of a connection, and deleted messages, in one query.
const CONTROLS_MAX: i64 = 10_000;

/// Reason to end a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunControlReason {
    /// A person stopped the agent.
    Stop,
    /// The author deleted the message.
    Deleted,
    /// The author edited the message, and the agent gets the new text.
    Edited,
    /// A later message interrupts the answer.
    Interrupted,
}

/// Run control.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // the columns' names
pub struct RunControl {
    pub connection: ConnectionId,
    pub channel: String,
    /// Thread. `None`: all of the channel.
    pub thread_ts: Option<String>,
    /// Time of the event, which applies to earlier questions. For a deletion, the deleted message.
    pub ts: String,
    /// Message of an edit or an interruption.
    pub message_ts: Option<String>,
    pub reason: RunControlReason,
}

impl RunControlReason {
    fn parse(word: &str) -> Self {
        match word {
            "stop" => Self::Stop,
            "edit" => Self::Edited,
            "interrupt" => Self::Interrupted,
            _ => Self::Deleted,
        }
    }
}

impl RunControl {
    /// Returns whether the control applies to the answer to a message.
    pub fn applies_to(
        &self,
        connection: ConnectionId,
        channel: &ChannelId,
        thread_ts: &str,
        message_ts: &str,
        asked_at: &str,
    ) -> bool {
        if (self.connection, self.channel.as_str()) != (connection, channel.as_str()) {
            return false;
        }
        match self.reason {
            RunControlReason::Deleted => self.ts == message_ts,
            RunControlReason::Edited | RunControlReason::Interrupted => {
                self.message_ts.as_deref() == Some(message_ts) && is_before(asked_at, &self.ts)
            }
            RunControlReason::Stop => {
                self.thread_ts.as_deref().is_none_or(|thread| thread == thread_ts)
                    && is_before(asked_at, &self.ts)
            }
        }
    }
}

/// Returns whether a `ts` of Slack is before another.
fn is_before(ts: &str, other: &str) -> bool {
    let key = |ts: &str| (ts.split('.').next().map_or(0, str::len), ts.to_owned());
    key(ts) < key(other)
}

impl Store {
    /// Returns the controls of connections of the last `within`.
    pub async fn recent_run_controls(
        &self,
        connections: &[String],
        within: Duration,
    ) -> Result<Vec<RunControl>, StoreError> {
        let rows = sqlx::query(
            "-- run_controls.recent
             select r.* from unnest($3::text[]) c (id), lateral (
                 (select connection_id, channel_id, thread_ts, ts, message_ts, reason
                    from run_controls
                   where connection_id = c.id and at > now() - make_interval(secs => $1)
                   order by at desc limit $2)
                 union all
                 (select connection_id, channel_id, null, ts, null, 'deleted' from deleted_messages
                   where connection_id = c.id and at > now() - make_interval(secs => $1)
                   order by at desc limit $2)) r",
        )
        .bind(within.as_secs_f64())
        .bind(CONTROLS_MAX)
        .bind(connections)
        .fetch_all(&self.pool)
        .await?;
        rows.iter()
            .map(|row| {
                let ts: String = row.try_get("ts")?;
                Ok(RunControl {
                    connection: column(row, "run_controls", &ts, "connection_id")?,
                    channel: row.try_get("channel_id")?,
                    thread_ts: row.try_get("thread_ts")?,
                    message_ts: row.try_get("message_ts")?,
                    reason: RunControlReason::parse(row.try_get("reason")?),
                    ts,
                })
            })
            .collect()
    }

    /// Returns the control that applies to the answer to a message, if there is one.
    pub async fn run_control(
        &self,
        connection: ConnectionId,
        channel: &ChannelId,
        thread_ts: &str,
        message_ts: &str,
        asked_at: &str,
    ) -> Result<Option<RunControlReason>, StoreError> {
        let found: Option<String> = sqlx::query_scalar(
            "-- run_controls.find
             (select 'deleted' from deleted_messages
               where connection_id = $1 and channel_id = $2 and ts = $4)
             union all
             (select reason from run_controls
               where connection_id = $1 and channel_id = $2
                 and case when reason = 'stop' then thread_ts is null or thread_ts = $3
                          else message_ts = $4 end
                 and (length(split_part(ts, '.', 1)), ts collate \"C\")
                     > (length(split_part($5, '.', 1)), $5 collate \"C\") limit 1)
              limit 1",
        )
        .bind(connection.to_string())
        .bind(channel.as_str())
        .bind(thread_ts)
        .bind(message_ts)
        .bind(asked_at)
        .fetch_optional(&self.pool)
        .await?;
        Ok(found.as_deref().map(RunControlReason::parse))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn applies_to_older_messages_only() {
        let connection = ConnectionId::random().expect("randomness");
        let channel: ChannelId = "C1".parse().expect("an id");
        let control = |thread_ts: Option<&str>, reason| RunControl {
            connection,
            channel: "C1".into(),
            thread_ts: thread_ts.map(str::to_owned),
            ts: "1700000000.000200".into(),
            message_ts: Some("1700000000.000050".into()),
            reason,
        };
        use RunControlReason::{Deleted, Edited, Interrupted, Stop};
        for reason in [Edited, Interrupted] {
            let control = control(None, reason);
            for (message, asked_at, applies) in [
                ("1700000000.000050", "1700000000.000050", true),
                ("1700000000.000050", "1700000000.000200", false),
                ("1700000000.000100", "1700000000.000100", false),
            ] {
                let is_met = control.applies_to(connection, &channel, "1.1", message, asked_at);
                assert_eq!(is_met, applies, "{reason:?} {message} {asked_at}");
            }
        }
        for (thread, reason, trigger, applies) in [
            (Some("1.1"), Stop, "1700000000.000100", true),
            (Some("1.1"), Stop, "1700000000.000200", false),
            (Some("1.1"), Stop, "1700000000.000300", false),
            (Some("1.1"), Stop, "999999999.000300", true),
            (Some("1.2"), Stop, "1700000000.000100", false),
            (None, Stop, "1700000000.000100", true),
            (None, Deleted, "1700000000.000200", true),
            (None, Deleted, "1700000000.000100", false),
        ] {
            let control = control(thread, reason);
            assert_eq!(control.applies_to(connection, &channel, "1.1", trigger, trigger), applies);
        }
    }
}
