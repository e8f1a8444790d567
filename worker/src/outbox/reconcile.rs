//! Looks up whether an ambiguous message arrived: by its mark, in the conversation that it was posted to.

use super::sender::AuthenticatedSender;
use crate::slack::{ApiResult, Method, bears_mark};
use serde_json::json;
use shared::store::SendOutcome;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest that a look-up waits for a limit of Slack's to pass.
const LIMIT_WAIT_MAX: Duration = Duration::from_secs(60);
/// A look-up that stays unclear for this long is given up: the message is sent again.
const UNCLEAR_FOR: Duration = Duration::from_secs(10 * 60);
/// Pages of a conversation that are looked through.
const PAGES_MAX: usize = 4;
/// This machine's clock and Slack's may differ by this much.
const CLOCK_TOLERANCE: Duration = Duration::from_secs(60);

pub enum LookupResult {
    Found,
    Absent,
    Later(Duration, String),
    /// There is no way to look.
    Closed(String),
}

/// Looks for a message in Slack.
pub async fn look_up(
    sender: &AuthenticatedSender<'_>,
    channel: &str,
    thread_ts: Option<&str>,
) -> LookupResult {
    let message = sender.sending.message;
    let mark = message.mark();
    let since = SystemTime::now() - message.age - CLOCK_TOLERANCE;
    let since = since.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let method = if thread_ts.is_some() { Method::Replies } else { Method::History };
    let later = |after, why: String| match message.age < UNCLEAR_FOR {
        true => LookupResult::Later(after, why),
        false => LookupResult::Closed(why),
    };
    let mut cursor = String::new();
    for _ in 0..PAGES_MAX {
        let body = json!({
            "channel": channel, "ts": thread_ts, "oldest": format!("{since}.000000"), "inclusive": true,
            "include_all_metadata": true, "limit": 100,
            "cursor": (!cursor.is_empty()).then_some(&cursor),
        });
        let answer = match sender.call(method, &body).await {
            Ok(ApiResult::Done(answer)) => answer,
            // Where a method is open once a minute, as it is to some apps, waiting for it would hold up the lane.
            Ok(ApiResult::RateLimited(after)) | Err(SendOutcome::Untried(after, _)) => {
                return match message.age < LIMIT_WAIT_MAX && after <= LIMIT_WAIT_MAX {
                    true => LookupResult::Later(after, "the look-up is rate limited".into()),
                    false => LookupResult::Closed("the look-up is rate limited".into()),
                };
            }
            Ok(ApiResult::Refused(_, code)) => return LookupResult::Closed(code),
            Ok(ApiResult::NotSent(why) | ApiResult::Ambiguous(why)) => {
                return later(sender.sending.backoff(), why);
            }
            Err(_) => return later(Duration::ZERO, "not now".into()),
        };
        let found = answer["messages"].as_array();
        if found.is_some_and(|messages| messages.iter().any(|m| bears_mark(m, &mark))) {
            return LookupResult::Found;
        }
        cursor = answer["response_metadata"]["next_cursor"].as_str().unwrap_or_default().to_owned();
        if cursor.is_empty() {
            return LookupResult::Absent;
        }
    }
    LookupResult::Closed("too much was posted since".into())
}
