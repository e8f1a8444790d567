//! Reconciles an ambiguous message: looks for its mark in the conversation.

use super::sender::AuthenticatedSender;
use crate::slack::{ApiResult, Method, has_mark};
use serde_json::json;
use shared::store::SendOutcome;
use std::time::Duration;

/// Maximum time that a look-up waits for a rate limit.
const LIMIT_WAIT_MAX: Duration = Duration::from_secs(60);
/// Age up to which a failed look-up is repeated; after that the message is sent again.
const UNCLEAR_FOR: Duration = Duration::from_secs(10 * 60);
/// Maximum number of pages of a conversation that are read.
const PAGES_MAX: usize = 4;
/// Maximum difference between the clocks of Postgres and Slack.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

pub enum LookupResult {
    /// The message is in Slack. The value is its `ts`.
    Found(String),
    Absent,
    Later(Duration, String),
    /// The message cannot be looked up.
    Impossible(String),
}

/// Looks up a message in Slack.
pub async fn look_up(
    sender: &AuthenticatedSender<'_>,
    channel: &str,
    thread_ts: Option<&str>,
) -> LookupResult {
    let message = sender.sending.message;
    let mark = message.mark();
    let since = message.written_at.saturating_sub(CLOCK_TOLERANCE).as_secs();
    let method = if thread_ts.is_some() { Method::Replies } else { Method::History };
    let later = |after, reason: String| match message.age < UNCLEAR_FOR {
        true => LookupResult::Later(after, reason),
        false => LookupResult::Impossible(reason),
    };
    let mut cursor = String::new();
    for _ in 0..PAGES_MAX {
        let body = json!({
            "channel": channel, "ts": thread_ts, "oldest": format!("{since}.000000"),
            "inclusive": true, "include_all_metadata": true, "limit": 100,
            "cursor": (!cursor.is_empty()).then_some(&cursor),
        });
        let answer = match sender.call(method, &body).await {
            Ok(ApiResult::Succeeded(answer)) => answer,
            // Slack lets some apps call a method once a minute: a long wait would delay the lane.
            Ok(ApiResult::RateLimited(after)) | Err(SendOutcome::Untried(after, _)) => {
                return match message.age < LIMIT_WAIT_MAX && after <= LIMIT_WAIT_MAX {
                    true => LookupResult::Later(after, "the look-up is rate limited".into()),
                    false => LookupResult::Impossible("the look-up is rate limited".into()),
                };
            }
            Ok(ApiResult::Refused(_, code)) => return LookupResult::Impossible(code),
            Ok(ApiResult::NotSent(reason) | ApiResult::Ambiguous(reason)) => {
                return later(sender.sending.backoff(), reason);
            }
            Err(_) => return later(Duration::ZERO, "the worker's row expired".into()),
        };
        let mut messages = answer["messages"].as_array().into_iter().flatten();
        if let Some(found) = messages.find(|message| has_mark(message, &mark)) {
            return LookupResult::Found(found["ts"].as_str().unwrap_or_default().to_owned());
        }
        cursor = answer["response_metadata"]["next_cursor"].as_str().unwrap_or_default().to_owned();
        if cursor.is_empty() {
            return LookupResult::Absent;
        }
    }
    LookupResult::Impossible("too many messages were posted since".into())
}
