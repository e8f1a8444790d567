//! Calls that change what Slack shows of a session.

use super::board::{SessionCall, SessionCallEnd, SessionKey};
use crate::{
    context::WorkerTerm,
    dispatch::{
        attempt_context::AttemptContext,
        runs::{Feature, UNSUPPORTED},
    },
    slack::{Action, ApiResult, Method},
};
use serde_json::{Value, json};
use shared::domain::ConnectionStatus;
use std::time::Duration;
use tokio::time::Instant;
use tracing::info;

/// Time after which the status of a session is set again: Slack ends it after an hour.
pub const PROCESSING_FOR: Duration = Duration::from_secs(45 * 60);
/// Time after which the status of a thread is set again: Slack ends it after two minutes.
const THREAD_STATUS_FOR: Duration = Duration::from_secs(90);
/// Wait after a call that was not answered.
const RETRY_WAIT: Duration = Duration::from_secs(5);

/// Result of a call, apart from limits and failures.
enum Answer {
    Accepted,
    Refused(String),
}

/// Makes a call, by the methods that the connection has.
pub async fn call(
    context: &AttemptContext,
    term: &WorkerTerm,
    key: &SessionKey,
    wanted: &SessionCall,
) -> SessionCallEnd {
    let result = match wanted {
        SessionCall::Prompts(prompts) => {
            let body = json!({ "channel_id": key.channel.as_str(), "prompts": prompts });
            set_prompts(context, term, key, body).await
        }
        _ => by_sessions_or_threads(context, term, key, wanted).await,
    };
    result.unwrap_or_else(SessionCallEnd::Retry)
}

async fn by_sessions_or_threads(
    context: &AttemptContext,
    term: &WorkerTerm,
    key: &SessionKey,
    wanted: &SessionCall,
) -> Result<SessionCallEnd, Duration> {
    let place = json!({ "channel_id": key.channel.as_str(), "thread_ts": key.thread_ts });
    for feature in [Feature::Sessions, Feature::AssistantThreads] {
        if !context.budgets.has(key.connection, feature, Instant::now()) {
            continue;
        }
        let is_session = feature == Feature::Sessions;
        let mut body = place.clone();
        let (method, for_time) = match wanted {
            SessionCall::Status { is_working, .. } if is_session => {
                body["status"] = if *is_working { "processing" } else { "active" }.into();
                (Method::SetSessionStatus, PROCESSING_FOR)
            }
            SessionCall::Status { is_working, words } => {
                body["status"] = if *is_working { words.as_str() } else { "" }.into();
                (Method::SetStatus, THREAD_STATUS_FOR)
            }
            SessionCall::Title { title, .. } => {
                body["title"] = title.as_str().into();
                let method = if is_session { Method::RenameSession } else { Method::SetTitle };
                (method, Duration::ZERO)
            }
            SessionCall::Prompts(_) => return Ok(SessionCallEnd::Refused),
        };
        match send(context, term, key, method, &body).await? {
            Answer::Accepted => {
                return Ok(SessionCallEnd::Shown { for_time, shows_words: !is_session });
            }
            Answer::Refused(code) if code == "session_not_found" => {
                return create_session(context, term, key, wanted, body).await;
            }
            Answer::Refused(code) if UNSUPPORTED.contains(&code.as_str()) => {
                context.budgets.record_unsupported(key.connection, feature, Instant::now());
            }
            Answer::Refused(code) => {
                info!(connection = %key.connection, method = method.as_str(), code, "session refused");
                return Ok(SessionCallEnd::Refused);
            }
        }
    }
    Ok(SessionCallEnd::Refused)
}

/// Creates a session with its title.
async fn create_session(
    context: &AttemptContext,
    term: &WorkerTerm,
    key: &SessionKey,
    wanted: &SessionCall,
    mut body: Value,
) -> Result<SessionCallEnd, Duration> {
    let is_working = matches!(wanted, SessionCall::Title { is_working: true, .. });
    body["status"] = if is_working { "processing" } else { "active" }.into();
    Ok(match send(context, term, key, Method::SetSessionStatus, &body).await? {
        Answer::Accepted => SessionCallEnd::Shown { for_time: Duration::ZERO, shows_words: false },
        Answer::Refused(_) => SessionCallEnd::Refused,
    })
}

/// Sets prompts. Slack ignores those of an agent with a thread, and refuses those of an assistant
/// without one.
async fn set_prompts(
    context: &AttemptContext,
    term: &WorkerTerm,
    key: &SessionKey,
    mut body: Value,
) -> Result<SessionCallEnd, Duration> {
    let mut answer = send(context, term, key, Method::SetPrompts, &body).await?;
    if matches!(&answer, Answer::Refused(code) if code == "missing_thread_ts") {
        body["thread_ts"] = key.thread_ts.as_str().into();
        answer = send(context, term, key, Method::SetPrompts, &body).await?;
    }
    Ok(match answer {
        Answer::Accepted => SessionCallEnd::Shown { for_time: Duration::ZERO, shows_words: false },
        Answer::Refused(code) => {
            info!(connection = %key.connection, code, "suggested prompts refused");
            SessionCallEnd::Refused
        }
    })
}

/// Sends a call. Returns the time to wait if it was not made, or not answered.
async fn send(
    context: &AttemptContext,
    term: &WorkerTerm,
    key: &SessionKey,
    method: Method,
    body: &Value,
) -> Result<Answer, Duration> {
    let clients = &context.clients;
    let refused = |code: &str| Ok(Answer::Refused(code.to_owned()));
    let connection = match clients.connections.connection(key.connection).await {
        Ok(Some(connection)) if connection.status == ConnectionStatus::Active => connection,
        Ok(_) => return refused("connection_not_active"),
        Err(_) => return Err(RETRY_WAIT),
    };
    let Some(token) = &connection.bot_token else { return refused("no_token") };
    let permit = clients.slack.permit(key.connection, method).await?;
    if !term.holds() {
        return refused("worker_expired");
    }
    match clients.slack.call(permit, token, body).await {
        ApiResult::Succeeded(_) => Ok(Answer::Accepted),
        ApiResult::RateLimited(wait) => Err(wait),
        ApiResult::NotSent(_) | ApiResult::Ambiguous(_) => Err(RETRY_WAIT),
        ApiResult::Refused(Action::Reconcile | Action::RefreshToken, _) => Err(RETRY_WAIT),
        ApiResult::Refused(_, code) => Ok(Answer::Refused(code)),
    }
}
