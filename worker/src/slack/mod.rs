//! Client of Slack's Web API and response_urls.
//!
//! Called by outbox, dispatch and token refresh. Results distinguish calls without an effect from
//! calls with an unknown one. [`error`] maps Slack's errors to actions. Redirects are not followed,
//! and a response_url must have an allowed origin, since it came in a webhook's body.

mod error;
#[cfg(test)]
mod fuzz;
mod message_limits;
mod metadata;
mod metrics;
mod rate_limits;

pub use error::Action;
pub use message_limits::{TEXT_CHARS_MAX, fit};
pub use metadata::{answer_metadata, has_mark, postable};
pub use metrics::{Reconciliation, SlackMetrics};
pub use rate_limits::{CallPermit, RateLimits};

use reqwest::{Response, Url, header::RETRY_AFTER};
use serde_json::Value;
use shared::{secrets::Secret, slack::repair, store::Store};
use std::time::Duration;

/// Timeout of a call.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Wait after a 429 without `Retry-After`.
const DEFAULT_RETRY_AFTER: Duration = Duration::from_secs(30);
/// Maximum `Retry-After` that is obeyed, in seconds.
const RETRY_AFTER_MAX: u64 = 24 * 3600;
/// Maximum bytes of an answer; a page of a conversation's history is the longest.
const RESPONSE_BYTES_MAX: usize = 4 << 20;
/// Maximum bytes of an answer of a response_url.
const RESPONSE_URL_BYTES_MAX: usize = 64 << 10;

/// Client of Slack. Cheap to clone.
#[derive(Clone)]
pub struct Slack {
    http: reqwest::Client,
    api: Url,
    response_origins: Vec<Url>,
    pub limits: RateLimits,
    pub metrics: SlackMetrics,
}

/// Method of the Web API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // Slack's names, below
pub enum Method {
    PostMessage,
    PostEphemeral,
    UpdateMessage,
    DeleteMessage,
    StartStream,
    AppendStream,
    StopStream,
    OpenConversation,
    History,
    Replies,
    OpenView,
    UpdateView,
    PublishView,
    SetStatus,
    SetSessionStatus,
    RenameSession,
    SetTitle,
    SetPrompts,
    AuthTest,
    OauthAccess,
}

impl Method {
    /// Returns Slack's name of the method.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::PostMessage => "chat.postMessage",
            Method::PostEphemeral => "chat.postEphemeral",
            Method::UpdateMessage => "chat.update",
            Method::DeleteMessage => "chat.delete",
            Method::StartStream => "chat.startStream",
            Method::AppendStream => "chat.appendStream",
            Method::StopStream => "chat.stopStream",
            Method::OpenConversation => "conversations.open",
            Method::History => "conversations.history",
            Method::Replies => "conversations.replies",
            Method::OpenView => "views.open",
            Method::UpdateView => "views.update",
            Method::PublishView => "views.publish",
            Method::SetStatus => "assistant.threads.setStatus",
            Method::SetSessionStatus => "agents.sessions.setStatus",
            Method::RenameSession => "agents.sessions.rename",
            Method::SetTitle => "assistant.threads.setTitle",
            Method::SetPrompts => "assistant.threads.setSuggestedPrompts",
            Method::AuthTest => "auth.test",
            Method::OauthAccess => "oauth.v2.access",
        }
    }

    /// Returns whether the arguments are sent as a form: only methods that write accept JSON.
    fn uses_form(self) -> bool {
        matches!(self, Method::History | Method::Replies | Method::AuthTest | Method::OauthAccess)
    }
}

/// Result of a call.
#[derive(Debug)]
pub enum ApiResult {
    /// Slack's answer to a call that succeeded.
    Succeeded(Value),
    /// Action and code of an error. The call had no effect, except perhaps for
    /// [`Action::Reconcile`].
    Refused(Action, String),
    /// Rate limit, recorded for all workers, and the wait.
    RateLimited(Duration),
    /// The request was not sent.
    NotSent(String),
    /// The request was sent, result unknown.
    Ambiguous(String),
}

/// Result of a message to a `response_url`.
#[derive(Debug)]
pub enum ResponseUrlResult {
    Succeeded,
    /// The URL expired or was used too often.
    UsedUp(String),
    Refused(String),
    /// Rate limit, and the wait.
    RateLimited(Duration),
    /// The request was not sent.
    NotSent(String),
    /// The request was sent, result unknown.
    Ambiguous(String),
}

impl Slack {
    /// Creates a client. `api` is the base URL, `response_origins` are the origins of
    /// response_urls.
    pub fn new(mut api: Url, response_origins: Vec<Url>, store: Store) -> reqwest::Result<Self> {
        if !api.path().ends_with('/') {
            api.set_path(&format!("{}/", api.path())); // otherwise `join` replaces the last segment
        }
        let https_only =
            std::iter::once(&api).chain(&response_origins).all(|url| url.scheme() == "https");
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy() // a proxy set in the environment would see tokens and response_urls
            .https_only(https_only)
            .timeout(SEND_TIMEOUT)
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let limits = RateLimits::new(store);
        Ok(Self { http, api, response_origins, limits, metrics: SlackMetrics::default() })
    }

    /// Waits for a permit to call a method. Returns the time to wait if there is none in time.
    pub async fn permit(
        &self,
        connection: shared::domain::ConnectionId,
        method: Method,
    ) -> Result<(CallPermit, Method), Duration> {
        Ok((self.limits.permit(connection, method.as_str()).await?, method))
    }

    pub async fn call(
        &self,
        (permit, method): (CallPermit, Method),
        token: &Secret,
        body: &Value,
    ) -> ApiResult {
        let Ok(url) = self.api.join(method.as_str()) else {
            return ApiResult::NotSent("TIDEGATE_SLACK_API_URL is not a base URL".into());
        };
        let request = self.http.post(url).bearer_auth(token.expose());
        let request = match method.uses_form() {
            true => request.header("content-type", FORM).body(form(body)),
            false => request.json(body),
        };
        let result = read(request).await;
        self.metrics.record_call(method.as_str(), &result);
        if let ApiResult::RateLimited(retry_after) = result {
            self.limits.record_limit(permit.connection, permit.method, retry_after).await;
        }
        result
    }

    /// Exchanges a refresh token for new tokens. Needs no permit: Slack limits this per app, far
    /// above the use here.
    pub async fn refresh(
        &self,
        client_id: &str,
        client_secret: &Secret,
        refresh_token: &Secret,
    ) -> ApiResult {
        let Ok(url) = self.api.join(Method::OauthAccess.as_str()) else {
            return ApiResult::NotSent("TIDEGATE_SLACK_API_URL is not a base URL".into());
        };
        let form = form(&serde_json::json!({
            "grant_type": "refresh_token", "refresh_token": refresh_token.expose(),
        }));
        let request = self
            .http
            .post(url)
            .basic_auth(client_id, Some(client_secret.expose()))
            .header("content-type", FORM)
            .body(form);
        let result = read(request).await;
        self.metrics.record_call(Method::OauthAccess.as_str(), &result);
        result
    }

    pub async fn post_response_url(&self, url: &str, message: &Value) -> ResponseUrlResult {
        let result = self.try_post_response_url(url, message).await;
        self.metrics.record_response_url(&result);
        result
    }

    async fn try_post_response_url(&self, url: &str, message: &Value) -> ResponseUrlResult {
        let Ok(url) = Url::parse(url) else {
            return ResponseUrlResult::Refused("the response_url is malformed".into());
        };
        if !self.response_origins.iter().any(|origin| origin.origin() == url.origin()) {
            let reason = "TIDEGATE_RESPONSE_URL_ORIGINS does not allow the response_url";
            return ResponseUrlResult::Refused(reason.into());
        }
        let response = match self.http.post(url).json(message).send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => {
                return ResponseUrlResult::NotSent(error.without_url().to_string());
            }
            Err(error) => return ResponseUrlResult::Ambiguous(error.without_url().to_string()),
        };
        Self::read_response_url(response).await
    }

    async fn read_response_url(response: Response) -> ResponseUrlResult {
        let status = response.status();
        if status.is_success() {
            // Slack answers some refusals with 200.
            let text = body(response, RESPONSE_URL_BYTES_MAX).await.unwrap_or_default();
            let answer: Value = serde_json::from_str(&repair(&text)).unwrap_or_default();
            return match answer["ok"] == false {
                true => {
                    let code = answer["error"].as_str().unwrap_or("no reason");
                    ResponseUrlResult::Refused(code.chars().take(80).collect())
                }
                false => ResponseUrlResult::Succeeded,
            };
        }
        if status.as_u16() == 429 {
            return ResponseUrlResult::RateLimited(retry_after(&response));
        }
        if status.is_server_error() {
            return ResponseUrlResult::Ambiguous(status.to_string());
        }
        let text = body(response, RESPONSE_URL_BYTES_MAX).await.unwrap_or_default();
        let text: String = String::from_utf8_lossy(&text).chars().take(80).collect();
        let is_used_up = matches!(status.as_u16(), 404 | 410)
            || ["used_url", "expired_url"].iter().any(|word| text.contains(word));
        match is_used_up {
            true => ResponseUrlResult::UsedUp(format!("{status} {text}")),
            false => ResponseUrlResult::Refused(format!("{status} {text}")),
        }
    }
}

const FORM: &str = "application/x-www-form-urlencoded";

/// Returns the fields of an object as a form.
fn form(body: &Value) -> String {
    let mut form = form_urlencoded::Serializer::new(String::new());
    for (name, value) in body.as_object().into_iter().flatten() {
        match value {
            Value::Null => {}
            Value::String(text) => drop(form.append_pair(name, text)),
            other => drop(form.append_pair(name, &other.to_string())),
        }
    }
    form.finish()
}

async fn read(request: reqwest::RequestBuilder) -> ApiResult {
    let response = match request.send().await {
        Ok(response) => response,
        // Without a connection nothing was sent; later failures are ambiguous.
        Err(error) if error.is_connect() => {
            return ApiResult::NotSent(error.without_url().to_string());
        }
        Err(error) => return ApiResult::Ambiguous(error.without_url().to_string()),
    };
    read_answer(response).await
}

async fn read_answer(response: Response) -> ApiResult {
    let status = response.status();
    if status.as_u16() == 429 {
        return ApiResult::RateLimited(retry_after(&response));
    }
    let retry_after = retry_after(&response);
    let body = match body(response, RESPONSE_BYTES_MAX).await {
        Ok(body) => body,
        Err(reason) => return ApiResult::Ambiguous(reason),
    };
    let Ok(answer) = serde_json::from_str::<Value>(&repair(&body)) else {
        // After a server error the call may have been processed, after a client error it was not.
        return match status.is_client_error() {
            true => ApiResult::Refused(Action::Fail, status.to_string()),
            false => ApiResult::Ambiguous(format!("{status}, not JSON")),
        };
    };
    if answer["ok"] == true {
        return ApiResult::Succeeded(answer);
    }
    let code: String = answer["error"].as_str().unwrap_or("no error").chars().take(80).collect();
    match Action::of_error(&code) {
        Action::Wait => ApiResult::RateLimited(retry_after),
        action => ApiResult::Refused(action, code),
    }
}

async fn body(mut response: Response, max: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| error.without_url().to_string())?
    {
        if body.len() + chunk.len() > max {
            return Err(format!("Slack's answer exceeds {max} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn retry_after(response: &Response) -> Duration {
    let seconds =
        response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    seconds.map_or(DEFAULT_RETRY_AFTER, |seconds: u64| {
        Duration::from_secs(seconds.min(RETRY_AFTER_MAX))
    })
}
