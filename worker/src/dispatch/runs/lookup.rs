//! Looks for the message of a segment whose begin is ambiguous.

use super::{
    calls::Called,
    writer::{WriteEnd, Writer},
};
use crate::{
    dispatch::content::text_of,
    slack::{Method, SEND_TIMEOUT, has_mark},
};
use serde_json::json;
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// Time after the call in which the message of an ambiguous begin may still appear: the timeout of
/// the call.
const BEGIN_SETTLES_WITHIN: Duration = Duration::from_secs(5);
const _: () = assert!(SEND_TIMEOUT.as_secs() <= BEGIN_SETTLES_WITHIN.as_secs());

impl Writer {
    /// Looks for the message of a segment whose begin is ambiguous, until it can no longer appear.
    pub(super) async fn find_segment(
        &mut self,
        called_at: Instant,
    ) -> Result<Option<String>, WriteEnd> {
        if let Some(ts) = self.look_up_segment().await? {
            return Ok(Some(ts));
        }
        tokio::time::sleep_until(called_at + BEGIN_SETTLES_WITHIN).await;
        self.look_up_segment().await
    }

    /// Looks for the message of a segment once.
    async fn look_up_segment(&mut self) -> Result<Option<String>, WriteEnd> {
        let body = json!({
            "channel": self.target.channel.as_str(), "ts": self.target.thread_ts,
            "oldest": self.target.trigger_ts, "inclusive": true, "limit": 200,
            "include_all_metadata": true,
        });
        let answer = match self.call(Method::Replies, &body).await? {
            Called::Succeeded(answer) => answer,
            Called::Refused(code) if code == "thread_not_found" => {
                return Err(WriteEnd::Gone("message_deleted"));
            }
            Called::Refused(reason) | Called::Ambiguous(reason) => {
                warn!(reason, "failed to look up segment; it begins again");
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

    /// Returns the mark of the segment's message, equal in every attempt.
    pub(super) fn mark(&self) -> String {
        format!("{}-{}", self.target.run, self.state.segment_from)
    }
}
