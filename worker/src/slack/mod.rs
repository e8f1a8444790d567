//! Slack, as far as we call it: `chat.postMessage`, `views.update` and `response_url`s.
//!
//! In: a token or an address, and a message. Out: said, later, or never, with Slack's own word for why. No redirects,
//! and a `response_url` only where Slack has its own: it came in a webhook's body.

use reqwest::{Response, Url, header::RETRY_AFTER};
use serde::Deserialize;
use serde_json::{Value, json};
use shared::{secrets::Secret, store::SendResult, types::ChannelId};
use std::time::Duration;

/// One call.
pub const SEND_TIMEOUT: Duration = Duration::from_secs(5);
/// Slack's answer to too much, when it does not say how long.
const RATE_LIMITED: Duration = Duration::from_secs(30);
/// Longest wait between two tries.
const BACKOFF_MAX: Duration = Duration::from_secs(60);

/// A client of Slack.
#[derive(Clone)]
pub struct Slack {
    http: reqwest::Client,
    api: Url,
    response_origins: Vec<Url>,
}

#[derive(Deserialize)]
struct ApiAnswer {
    ok: bool,
    #[serde(default)]
    error: String,
}

impl Slack {
    /// `api` is where the Web API is; `response_origins` where a `response_url` may lie.
    pub fn new(mut api: Url, response_origins: Vec<Url>) -> reqwest::Result<Self> {
        if !api.path().ends_with('/') {
            api.set_path(&format!("{}/", api.path())); // else `join` would replace the last part
        }
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(SEND_TIMEOUT)
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { http, api, response_origins })
    }

    /// Answers through a `response_url`.
    pub async fn respond(&self, url: &str, message: &Value, tries: i32) -> SendResult {
        let Ok(url) = Url::parse(url) else { return SendResult::Failed("no response_url".into()) };
        if !self.response_origins.iter().any(|origin| origin.origin() == url.origin()) {
            return SendResult::Failed("the response_url is not Slack's".into());
        }
        match self.http.post(url).json(message).send().await {
            Ok(response) if response.status().is_success() => SendResult::Sent,
            Ok(response) => unsuccessful(&response, tries),
            Err(error) => again(tries, error.without_url().to_string()),
        }
    }

    /// Posts a message.
    pub async fn post_message(
        &self,
        token: &Secret,
        channel: &ChannelId,
        thread_ts: Option<&str>,
        message: &Value,
        tries: i32,
    ) -> SendResult {
        let mut body = message.clone();
        body["channel"] = channel.as_str().into();
        if let Some(ts) = thread_ts {
            body["thread_ts"] = ts.into();
        }
        self.call("chat.postMessage", token, &body, tries).await
    }

    /// Shows something else in an open view.
    pub async fn update_view(
        &self,
        token: &Secret,
        view_id: &str,
        view: &Value,
        tries: i32,
    ) -> SendResult {
        self.call("views.update", token, &json!({ "view_id": view_id, "view": view }), tries).await
    }

    async fn call(
        &self,
        method: &'static str,
        token: &Secret,
        body: &Value,
        tries: i32,
    ) -> SendResult {
        let Ok(url) = self.api.join(method) else {
            return SendResult::Failed("TIDEGATE_SLACK_API is no base of addresses".into());
        };
        let response = match self.http.post(url).bearer_auth(token.expose()).json(body).send().await
        {
            Ok(response) if response.status().is_success() => response,
            Ok(response) => return unsuccessful(&response, tries),
            Err(error) => return again(tries, error.without_url().to_string()),
        };
        match response.json::<ApiAnswer>().await {
            Ok(ApiAnswer { ok: true, .. }) => SendResult::Sent,
            Ok(ApiAnswer { error, .. }) => match error.as_str() {
                "ratelimited" | "rate_limited" => SendResult::Later(RATE_LIMITED, error),
                "fatal_error" | "internal_error" | "service_unavailable" | "request_timeout" => {
                    again(tries, error)
                }
                _ => SendResult::Failed(error),
            },
            Err(_) => again(tries, "Slack's answer is not JSON".into()),
        }
    }
}

fn unsuccessful(response: &Response, tries: i32) -> SendResult {
    let status = response.status();
    let why = status.to_string();
    if status.as_u16() == 429 {
        let seconds =
            response.headers().get(RETRY_AFTER).and_then(|v| v.to_str().ok()?.parse().ok());
        return SendResult::Later(seconds.map_or(RATE_LIMITED, Duration::from_secs), why);
    }
    if status.is_server_error() { again(tries, why) } else { SendResult::Failed(why) }
}

/// Whoever sends decides when it is too old to be tried.
fn again(tries: i32, why: String) -> SendResult {
    SendResult::Later(Duration::from_millis(500 << tries.clamp(0, 10)).min(BACKOFF_MAX), why)
}
