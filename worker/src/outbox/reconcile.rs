//! Reconciles an ambiguous message: looks for its mark in the conversation.

use super::sender::{AuthenticatedSender, NOT_HELD_WAIT, NotCalled, ROW_EXPIRED};
use crate::slack::{ApiResult, Method, has_mark};
use serde_json::{Value, json};
use std::time::Duration;

/// Maximum time that a look-up waits for a rate limit.
const LIMIT_WAIT_MAX: Duration = Duration::from_secs(60);
/// Age up to which a failed look-up is repeated; after that the message is sent again.
const UNCLEAR_FOR: Duration = Duration::from_secs(10 * 60);
/// Maximum number of pages of a conversation that are read.
const PAGES_MAX: usize = 4;
/// Maximum difference between the clocks of Postgres and Slack.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

#[derive(Debug)]
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
    let mut cursor = String::new();
    for _ in 0..PAGES_MAX {
        let body = json!({
            "channel": channel, "ts": thread_ts, "oldest": format!("{since}.000000"),
            "inclusive": true, "include_all_metadata": true, "limit": 100,
            "cursor": (!cursor.is_empty()).then_some(&cursor),
        });
        let called = sender.call(method, &body).await;
        let answer = match answer_of(called, message.age, sender.sending.backoff()) {
            Ok(answer) => answer,
            Err(result) => return result,
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

/// Returns Slack's answer to a call, or the result of the look-up if there is none. A worker whose
/// row may have expired leaves the message to the next one, whatever its age.
fn answer_of(
    called: Result<ApiResult, NotCalled>,
    age: Duration,
    backoff: Duration,
) -> Result<Value, LookupResult> {
    Err(match called {
        Ok(ApiResult::Succeeded(answer)) => return Ok(answer),
        // Slack lets some apps call a method once a minute: a long wait would delay the lane.
        Ok(ApiResult::RateLimited(after)) | Err(NotCalled::RateLimited(after)) => {
            match age < LIMIT_WAIT_MAX && after <= LIMIT_WAIT_MAX {
                true => LookupResult::Later(after, "the look-up is rate limited".into()),
                false => LookupResult::Impossible("the look-up is rate limited".into()),
            }
        }
        Err(NotCalled::RowExpired) => LookupResult::Later(NOT_HELD_WAIT, ROW_EXPIRED.into()),
        Ok(ApiResult::Refused(_, code)) => LookupResult::Impossible(code),
        Ok(ApiResult::NotSent(reason) | ApiResult::Ambiguous(reason)) => match age < UNCLEAR_FOR {
            true => LookupResult::Later(backoff, reason),
            false => LookupResult::Impossible(reason),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_look_up_to_next_worker() {
        const BACKOFF: Duration = Duration::from_secs(1);
        let result = |called, age| answer_of(called, age, BACKOFF).expect_err("no answer");
        let is_later = |result| matches!(result, LookupResult::Later(..));
        for age in [Duration::ZERO, LIMIT_WAIT_MAX, UNCLEAR_FOR] {
            assert!(is_later(result(Err(NotCalled::RowExpired), age)), "{age:?}");
            let limited = result(Err(NotCalled::RateLimited(BACKOFF)), age);
            assert_eq!(is_later(limited), age < LIMIT_WAIT_MAX, "{age:?}");
            let ambiguous = result(Ok(ApiResult::Ambiguous("reset".into())), age);
            assert_eq!(is_later(ambiguous), age < UNCLEAR_FOR, "{age:?}");
        }
    }
}
