//! Slack's Web API and response_urls: calls, and how they ended, told apart by what may have happened at Slack.
//!
//! What follows from Slack's own error is the table of [`error`]. No redirects, and a response_url only at Slack's own
//! origins: it came in a webhook's body.

mod error;
mod metadata;
mod metrics;
mod rate_limits;

pub use error::Action;
pub use metadata::{bears_mark, postable};
pub use metrics::{Reconciliation, SlackMetrics};
pub use rate_limits::{CallPermit, RateLimits};

use reqwest::{Response, Url, header::RETRY_AFTER};
use serde_json::Value;
use shared::{secrets::Secret, store::Store};
use std::time::Duration;

/// One call.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Slack's answer to too much, when it does not say how long.
const RATE_LIMITED: Duration = Duration::from_secs(30);
/// Longest that is waited for, in seconds, whatever Slack says.
const RETRY_AFTER_MAX: u64 = 24 * 3600;
/// An answer may be this long, in bytes: a page of a conversation's history is the longest.
const ANSWER_BYTES_MAX: usize = 4 << 20;

/// A client of Slack. Cheap to clone.
#[derive(Clone)]
pub struct Slack {
    http: reqwest::Client,
    api: Url,
    response_origins: Vec<Url>,
    /// Who may call now.
    pub limits: RateLimits,
    /// How calls went.
    pub metrics: SlackMetrics,
}

/// A method of the Web API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // Slack's names, below
pub enum Method {
    PostMessage,
    PostEphemeral,
    UpdateMessage,
    OpenConversation,
    History,
    Replies,
    OpenView,
    UpdateView,
    PublishView,
    SetStatus,
    AuthTest,
    OauthAccess,
}

impl Method {
    /// Slack's name for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Method::PostMessage => "chat.postMessage",
            Method::PostEphemeral => "chat.postEphemeral",
            Method::UpdateMessage => "chat.update",
            Method::OpenConversation => "conversations.open",
            Method::History => "conversations.history",
            Method::Replies => "conversations.replies",
            Method::OpenView => "views.open",
            Method::UpdateView => "views.update",
            Method::PublishView => "views.publish",
            Method::SetStatus => "assistant.threads.setStatus",
            Method::AuthTest => "auth.test",
            Method::OauthAccess => "oauth.v2.access",
        }
    }

    /// Methods that read take a form; only those that write take JSON.
    fn takes_a_form(self) -> bool {
        matches!(self, Method::History | Method::Replies | Method::AuthTest | Method::OauthAccess)
    }
}

/// How a call went.
#[derive(Debug)]
pub enum ApiResult {
    /// Slack did it; this is its answer.
    Done(Value),
    /// Slack did not do it, and says why: its word.
    Refused(Action, String),
    /// Too many calls; all workers know.
    RateLimited(Duration),
    /// Slack never had it.
    NotSent(String),
    /// Nobody knows.
    Ambiguous(String),
}

/// How an answer through a `response_url` went.
#[derive(Debug)]
pub enum ResponseUrlResult {
    /// Slack took it.
    Done,
    /// This address takes no more: too old, or used too often.
    UsedUp(String),
    /// Slack won't take this.
    Refused(String),
    /// Too many calls.
    RateLimited(Duration),
    /// Slack never had it.
    NotSent(String),
    /// Nobody knows.
    Ambiguous(String),
}

impl Slack {
    /// `api` is where the Web API is; `response_origins` where a `response_url` may lie.
    pub fn new(mut api: Url, response_origins: Vec<Url>, store: Store) -> reqwest::Result<Self> {
        if !api.path().ends_with('/') {
            api.set_path(&format!("{}/", api.path())); // else `join` would replace the last part
        }
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(SEND_TIMEOUT)
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build()?;
        let limits = RateLimits::new(store);
        Ok(Self { http, api, response_origins, limits, metrics: SlackMetrics::default() })
    }

    /// Waits for a permit to call a method; else, how long to stay away.
    pub async fn permit(
        &self,
        connection: shared::types::ConnectionId,
        method: Method,
    ) -> Result<(CallPermit, Method), Duration> {
        Ok((self.limits.permit(connection, method.as_str()).await?, method))
    }

    /// Calls a method.
    pub async fn call(
        &self,
        (permit, method): (CallPermit, Method),
        token: &Secret,
        body: &Value,
    ) -> ApiResult {
        let Ok(url) = self.api.join(method.as_str()) else {
            return ApiResult::NotSent("TIDEGATE_SLACK_API is no base of addresses".into());
        };
        let request = self.http.post(url).bearer_auth(token.expose());
        let request = match method.takes_a_form() {
            true => request.header("content-type", FORM).body(form(body)),
            false => request.json(body),
        };
        let called = read(request).await;
        self.metrics.record_call(method.as_str(), &called);
        if let ApiResult::RateLimited(retry_after) = called {
            self.limits.limited(permit.connection, permit.method, retry_after).await;
        }
        called
    }

    /// Exchanges a refresh token for a new pair. No permit: this is limited by app, and far above what rotating needs.
    pub async fn refresh(
        &self,
        client_id: &str,
        client_secret: &Secret,
        refresh_token: &Secret,
    ) -> ApiResult {
        let Ok(url) = self.api.join(Method::OauthAccess.as_str()) else {
            return ApiResult::NotSent("TIDEGATE_SLACK_API is no base of addresses".into());
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
        let called = read(request).await;
        self.metrics.record_call(Method::OauthAccess.as_str(), &called);
        called
    }

    /// Answers through a `response_url`.
    pub async fn respond(&self, url: &str, message: &Value) -> ResponseUrlResult {
        let responded = self.try_respond(url, message).await;
        self.metrics.record_response_url(&responded);
        responded
    }

    async fn try_respond(&self, url: &str, message: &Value) -> ResponseUrlResult {
        let Ok(url) = Url::parse(url) else {
            return ResponseUrlResult::Refused("no response_url".into());
        };
        if !self.response_origins.iter().any(|origin| origin.origin() == url.origin()) {
            return ResponseUrlResult::Refused("the response_url is not Slack's".into());
        }
        let response = match self.http.post(url).json(message).send().await {
            Ok(response) => response,
            Err(error) if error.is_connect() => {
                return ResponseUrlResult::NotSent(error.without_url().to_string());
            }
            Err(error) => return ResponseUrlResult::Ambiguous(error.without_url().to_string()),
        };
        let status = response.status();
        if status.is_success() {
            // Slack answers some refusals with 200.
            let said = body(response).await.unwrap_or_default();
            let answer: Value = serde_json::from_slice(&said).unwrap_or_default();
            return match answer["ok"] == false {
                true => {
                    let word = answer["error"].as_str().unwrap_or("no reason");
                    ResponseUrlResult::Refused(word.chars().take(80).collect())
                }
                false => ResponseUrlResult::Done,
            };
        }
        if status.as_u16() == 429 {
            return ResponseUrlResult::RateLimited(retry_after(&response));
        }
        if status.is_server_error() {
            return ResponseUrlResult::Ambiguous(status.to_string());
        }
        let said = body(response).await.unwrap_or_default();
        let said: String = String::from_utf8_lossy(&said).chars().take(80).collect();
        let over = matches!(status.as_u16(), 404 | 410)
            || ["used_url", "expired_url"].iter().any(|word| said.contains(word));
        match over {
            true => ResponseUrlResult::UsedUp(format!("{status} {said}")),
            false => ResponseUrlResult::Refused(format!("{status} {said}")),
        }
    }
}

const FORM: &str = "application/x-www-form-urlencoded";

/// The fields of an object, as a form.
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
        // Without a connection nothing was sent; after that nobody knows how far it came.
        Err(error) if error.is_connect() => {
            return ApiResult::NotSent(error.without_url().to_string());
        }
        Err(error) => return ApiResult::Ambiguous(error.without_url().to_string()),
    };
    let status = response.status();
    if status.as_u16() == 429 {
        return ApiResult::RateLimited(retry_after(&response));
    }
    let retry_after = retry_after(&response);
    let body = match body(response).await {
        Ok(body) => body,
        Err(why) => return ApiResult::Ambiguous(why),
    };
    let Ok(answer) = serde_json::from_slice::<Value>(&body) else {
        // A server that can't say it in JSON may have done it before it broke; one that refuses did not.
        return match status.is_client_error() {
            true => ApiResult::Refused(Action::Fail, status.to_string()),
            false => ApiResult::Ambiguous(format!("{status}, not JSON")),
        };
    };
    if answer["ok"] == true {
        return ApiResult::Done(answer);
    }
    let code: String = answer["error"].as_str().unwrap_or("no error").chars().take(80).collect();
    match Action::of_error(&code) {
        Action::Wait => ApiResult::RateLimited(retry_after),
        action => ApiResult::Refused(action, code),
    }
}

async fn body(mut response: Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) =
        response.chunk().await.map_err(|error| error.without_url().to_string())?
    {
        if body.len() + chunk.len() > ANSWER_BYTES_MAX {
            return Err(format!("Slack answered over {ANSWER_BYTES_MAX} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn retry_after(response: &Response) -> Duration {
    let seconds =
        response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.parse().ok());
    seconds.map_or(RATE_LIMITED, |seconds: u64| Duration::from_secs(seconds.min(RETRY_AFTER_MAX)))
}
