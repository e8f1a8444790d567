//! Look-up of the message of a segment whose start is ambiguous.

use super::{
    slack_call::CallOutcome,
    writer::{WriteError, Writer},
};
use crate::{
    dispatch::content::text_of,
    slack::{Method, SEND_TIMEOUT, has_mark},
};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// Time after the call within which the message of an ambiguous start may still appear: at least
/// the timeout of the call.
const START_APPEARS_WITHIN: Duration = Duration::from_secs(5);
const _: () = assert!(SEND_TIMEOUT.as_secs() <= START_APPEARS_WITHIN.as_secs());
/// Maximum number of pages of replies that are read.
const PAGES_MAX: usize = 10;
/// Replies of a page.
const PAGE_LIMIT: u32 = 200;

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

    /// Looks up the message of the segment once, among the replies since the question.
    async fn look_up_segment(&mut self) -> Result<Option<String>, WriteError> {
        let (mark, text) = (self.mark(), text_of(&self.content));
        let is_segment = |message: &&Value| match self.state.edited {
            true => has_mark(message, &mark),
            false => message["streaming_state"] == "in_progress" && message["text"] == *text,
        };
        let mut cursor = String::new();
        for _ in 0..PAGES_MAX {
            let body = json!({
                "channel": self.target.channel.as_str(), "ts": self.target.thread_ts,
                "oldest": self.target.trigger_ts, "inclusive": true, "limit": PAGE_LIMIT,
                "include_all_metadata": true, "cursor": (!cursor.is_empty()).then_some(&cursor),
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
            let found = answer["messages"].as_array().into_iter().flatten().find(is_segment);
            if let Some(found) = found {
                return Ok(found["ts"].as_str().map(str::to_owned));
            }
            let next = answer["response_metadata"]["next_cursor"].as_str().unwrap_or_default();
            if next.is_empty() {
                return Ok(None);
            }
            cursor = next.to_owned();
        }
        warn!(pages = PAGES_MAX, "segment not found in a long thread; starting another message");
        Ok(None)
    }

    /// Returns the id in the metadata of the segment's message, equal in all attempts.
    pub(super) fn mark(&self) -> String {
        format!("{}-{}", self.target.run, self.state.segment_from)
    }
}
