//! Look-up of the message of a segment whose start is ambiguous.

use super::{
    calls::CallOutcome,
    writer::{WriteError, Writer},
};
use crate::{
    dispatch::content::text_of,
    slack::{Method, SEND_TIMEOUT, has_mark},
};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// Time after the call within which the message of an ambiguous start may still appear: at least
/// the timeout of the call.
const START_APPEARS_WITHIN: Duration = Duration::from_secs(5);
const _: () = assert!(SEND_TIMEOUT.as_secs() <= START_APPEARS_WITHIN.as_secs());

impl Writer {
    /// Looks up the message of the segment until it can no longer appear. Returns its `ts`.
    pub(super) async fn find_segment(
        &mut self,
        called_at: Instant,
    ) -> Result<Option<String>, WriteError> {
        if let Some(ts) = self.look_up_segment().await? {
            return Ok(Some(ts));
        }
        tokio::time::sleep_until(called_at + START_APPEARS_WITHIN).await;
        self.look_up_segment().await
    }

    /// Looks up the message of the segment once.
    async fn look_up_segment(&mut self) -> Result<Option<String>, WriteError> {
        let body = json!({
            "channel": self.target.channel.as_str(), "ts": self.target.thread_ts,
            "oldest": self.target.trigger_ts, "inclusive": true, "limit": 200,
            "include_all_metadata": true,
        });
        let answer = match self.call(Method::Replies, &body).await? {
            CallOutcome::Succeeded(answer) => answer,
            CallOutcome::Refused(code) if code == "thread_not_found" => {
                return Err(WriteError::Undeliverable("message_deleted"));
            }
            CallOutcome::Refused(reason) | CallOutcome::Ambiguous(reason) => {
                warn!(reason, "failed to look up segment; starting another message");
                return Ok(None);
            }
        };
        let (mark, text) = (self.mark(), text_of(&self.content));
        let found = answer["messages"].as_array().into_iter().flatten().find(|message| match self
            .state
            .edited
        {
            true => has_mark(message, &mark),
            false => message["streaming_state"] == "in_progress" && message["text"] == *text,
        });
        Ok(found.and_then(|message| message["ts"].as_str()).map(str::to_owned))
    }

    /// Returns the id in the metadata of the segment's message, equal in all attempts.
    pub(super) fn mark(&self) -> String {
        format!("{}-{}", self.target.run, self.state.segment_from)
    }
}
