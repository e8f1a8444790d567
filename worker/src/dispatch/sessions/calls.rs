//! Calls to Slack that set the status, title and prompts of a session.

use super::states::{SessionCall, SessionCallResult, SessionKey};
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

/// Time after which the status of a session is renewed. Slack ends it after an hour.
pub const PROCESSING_FOR: Duration = Duration::from_secs(45 * 60);
/// Time after which the status of a thread is renewed. Slack ends it after two minutes.
const THREAD_STATUS_FOR: Duration = Duration::from_secs(90);
/// Wait before a failed or ambiguous call is retried.
const RETRY_WAIT: Duration = Duration::from_secs(5);

/// Response of Slack to a call.
enum Answer {
    Accepted,
    Refused(String),
}

/// Makes a call with the methods that the connection supports.
pub async fn call(
    context: &AttemptContext,
    term: &WorkerTerm,
    key: &SessionKey,
    wanted: &SessionCall,
) -> SessionCallResult {
    let result = match wanted {
        SessionCall::Prompts(prompts) => {
            let body = json!({ "channel_id": key.channel.as_str(), "prompts": prompts });
            set_prompts(context, term, key, body).await
        }
        _ => by_sessions_or_threads(context, term, key, wanted).await,
    };
    result.unwrap_or_else(SessionCallResult::Retry)
}

async fn by_sessions_or_threads(
    context: &AttemptContext,
    term: &WorkerTerm,
    key: &SessionKey,
    wanted: &SessionCall,
) -> Result<SessionCallResult, Duration> {
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
            SessionCall::Status { is_working, text } => {
                body["status"] = if *is_working { text.as_str() } else { "" }.into();
                (Method::SetStatus, THREAD_STATUS_FOR)
            }
            SessionCall::Title { title, .. } => {
                body["title"] = title.as_str().into();
                let method = if is_session { Method::RenameSession } else { Method::SetTitle };
                (method, Duration::ZERO)
            }
            SessionCall::Prompts(_) => return Ok(SessionCallResult::Refused),
        };
        match send(context, term, key, method, &body).await? {
            Answer::Accepted => {
                return Ok(SessionCallResult::Shown { for_time, shows_text: !is_session });
            }
            Answer::Refused(code) if code == "session_not_found" => {
                return create_session(context, term, key, wanted, body).await;
            }
            Answer::Refused(code) if UNSUPPORTED.contains(&code.as_str()) => {
                context.budgets.record_unsupported(key.connection, feature, Instant::now());
            }
            Answer::Refused(code) => {
                let (connection, method) = (key.connection, method.as_str());
                info!(%connection, method, code, "session call refused");
                return Ok(SessionCallResult::Refused);
            }
        }
    }
    Ok(SessionCallResult::Refused)
}

/// Creates a session with the title in `body`.
async fn create_session(
    context: &AttemptContext,
    term: &WorkerTerm,
    key: &SessionKey,
    wanted: &SessionCall,
    mut body: Value,
) -> Result<SessionCallResult, Duration> {
    let is_working = matches!(wanted, SessionCall::Title { is_working: true, .. });
    body["status"] = if is_working { "processing" } else { "active" }.into();
    Ok(match send(context, term, key, Method::SetSessionStatus, &body).await? {
        Answer::Accepted => {
            SessionCallResult::Shown { for_time: Duration::ZERO, shows_text: false }
        }
        Answer::Refused(_) => SessionCallResult::Refused,
    })
}

/// Sets prompts, first without a thread: Slack ignores prompts with a thread from an agent, and
/// refuses prompts without one from an assistant.
async fn set_prompts(
    context: &AttemptContext,
    term: &WorkerTerm,
    key: &SessionKey,
    mut body: Value,
) -> Result<SessionCallResult, Duration> {
    let mut answer = send(context, term, key, Method::SetPrompts, &body).await?;
    if matches!(&answer, Answer::Refused(code) if code == "missing_thread_ts") {
        body["thread_ts"] = key.thread_ts.as_str().into();
        answer = send(context, term, key, Method::SetPrompts, &body).await?;
    }
    Ok(match answer {
        Answer::Accepted => {
            SessionCallResult::Shown { for_time: Duration::ZERO, shows_text: false }
        }
        Answer::Refused(code) => {
            info!(connection = %key.connection, code, "suggested prompts refused");
            SessionCallResult::Refused
        }
    })
}

/// Sends a call. Fails with the time to wait if it was not made or is ambiguous.
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
