//! Slack's Web API, as far as it tells to which installation a token belongs, and opens connections
//! of Socket Mode.

use anyhow::{Context, bail, ensure};
use reqwest::{Client, StatusCode, Url, header};
use serde_json::Value;
use shared::{
    secrets::Secret,
    slack::{Installation, repair},
};
use std::{fmt, time::Duration};

/// Maximum time of a call.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum bytes of an answer.
const RESPONSE_BYTES_MAX: usize = 64 << 10;
/// Seconds to wait if Slack names none.
const DEFAULT_RETRY_AFTER: u64 = 30;

/// Facts about a token.
#[derive(Debug)]
pub struct TokenFacts {
    pub installation: Installation,
    pub bot_user: Option<String>,
    /// App of the token. `None` if the token may not ask for it.
    pub app: Option<String>,
}

/// Result of asking about one token.
pub enum Answer {
    Answered(TokenFacts),
    /// Error code of Slack.
    Refused(String),
    Failed(String),
    /// Slack takes no further call for this time.
    RateLimited(Duration),
}

/// Result of asking for a connection of Socket Mode.
pub enum SocketAddress {
    /// Address with a ticket, which opens one connection.
    Url(Secret),
    /// Error code of Slack.
    Refused(String),
    Failed(String),
}

/// Slack takes no further call for a time.
#[derive(Debug)]
struct RateLimited(Duration);

impl fmt::Display for RateLimited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rate limited for {:?}", self.0)
    }
}

impl std::error::Error for RateLimited {}

/// Client of the methods that name the owner of a token, or open a connection of Socket Mode.
pub struct SlackApi {
    http: Client,
    base: Url,
}

impl SlackApi {
    /// Returns the Web API at a base URL.
    pub fn new(base: &Url) -> anyhow::Result<Self> {
        let is_loopback = matches!(base.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
        ensure!(
            base.scheme() == "https" || is_loopback,
            "tokens are sent by https only, and TIDEGATE_SLACK_API_URL is {base}"
        );
        let _ = rustls::crypto::ring::default_provider().install_default(); // once in a process
        let mut base = base.clone();
        if !base.path().ends_with('/') {
            base.set_path(&format!("{}/", base.path()));
        }
        let http = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy() // a proxy of the environment would see tokens
            .timeout(TIMEOUT)
            .build()
            .context("failed to create the HTTP client")?;
        Ok(Self { http, base })
    }

    /// Asks for the installation of a token (`auth.test`) and for its app (`bots.info`).
    pub async fn ask(&self, token: &Secret) -> Answer {
        self.try_ask(token).await.unwrap_or_else(|error| match error.downcast_ref() {
            Some(RateLimited(time)) => Answer::RateLimited(*time),
            None => Answer::Failed(format!("{error:#}")),
        })
    }

    async fn try_ask(&self, token: &Secret) -> anyhow::Result<Answer> {
        let owner = self.call("auth.test", token, &[]).await?;
        if owner["ok"] != true {
            let code = owner["error"].as_str().unwrap_or("no error code");
            return Ok(Answer::Refused(code.chars().take(80).collect()));
        }
        let text = |name: &str| owner[name].as_str();
        let form = [("bot", "bot_id"), ("team_id", "team_id")];
        let form = form.map(|(argument, name)| (argument, text(name).unwrap_or_default()));
        let bot = self.call("bots.info", token, &form).await?;
        let is_org_wide = owner["is_enterprise_install"] == true;
        let team = text("team_id").filter(|team| !is_org_wide && !team.starts_with('E'));
        Ok(Answer::Answered(TokenFacts {
            installation: Installation {
                enterprise: text("enterprise_id").and_then(|id| id.parse().ok()),
                team: team.and_then(|id| id.parse().ok()),
            },
            bot_user: text("user_id").map(str::to_owned),
            app: bot["bot"]["app_id"].as_str().map(str::to_owned),
        }))
    }

    /// Asks for the address of a new connection of Socket Mode (`apps.connections.open`).
    pub async fn open_socket(&self, token: &Secret) -> anyhow::Result<SocketAddress> {
        let answer = match self.call("apps.connections.open", token, &[]).await {
            Ok(answer) => answer,
            Err(error) => return Ok(SocketAddress::Failed(format!("{error:#}"))),
        };
        if answer["ok"] != true {
            let code = answer["error"].as_str().unwrap_or("no error code");
            return Ok(SocketAddress::Refused(code.chars().take(80).collect()));
        }
        let url = answer["url"].as_str().unwrap_or_default();
        let is_secure = url.starts_with("wss://");
        // A simulator on this machine has no certificate.
        let is_simulator = url.starts_with("ws://127.0.0.1:") && self.base.scheme() == "http";
        ensure!(is_secure || is_simulator, "apps.connections.open answered no wss address");
        Ok(SocketAddress::Url(Secret::new(url.to_owned())?))
    }

    async fn call(
        &self,
        method: &str,
        token: &Secret,
        form: &[(&str, &str)],
    ) -> anyhow::Result<Value> {
        let url = self.base.join(method).context("TIDEGATE_SLACK_API_URL is no base URL")?;
        let form = form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let sent = self
            .http
            .post(url)
            .bearer_auth(token.expose())
            .header("content-type", "application/x-www-form-urlencoded")
            .body(form);
        let mut response = sent.send().await.map_err(reqwest::Error::without_url)?;
        if response.status() == StatusCode::TOO_MANY_REQUESTS {
            let after = response.headers().get(header::RETRY_AFTER);
            let after = after.and_then(|value| value.to_str().ok()?.parse().ok());
            return Err(
                RateLimited(Duration::from_secs(after.unwrap_or(DEFAULT_RETRY_AFTER))).into()
            );
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(reqwest::Error::without_url)? {
            ensure!(body.len() + chunk.len() <= RESPONSE_BYTES_MAX, "the answer is too large");
            body.extend_from_slice(&chunk);
        }
        match serde_json::from_str(&repair(&body)) {
            Ok(answer) if response.status().is_success() => Ok(answer),
            _ => bail!("{method} was answered with {}", response.status()),
        }
    }
}
