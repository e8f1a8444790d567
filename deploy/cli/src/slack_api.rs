//! Client of Slack's Web API for two purposes: finding the app and installation of a token, and
//! opening Socket Mode connections.

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
/// Maximum bytes of a response.
const RESPONSE_BYTES_MAX: usize = 64 << 10;
/// Seconds to wait after a 429 without `Retry-After`.
const DEFAULT_RETRY_AFTER: u64 = 30;

/// App and installation of a bot token.
#[derive(Debug)]
pub struct TokenFacts {
    pub installation: Installation,
    pub bot_user: Option<String>,
    /// App of the token. `None` if the token lacks the scope to read it.
    pub app: Option<String>,
}

/// Result of looking up one token.
pub enum TokenLookup {
    Found(TokenFacts),
    /// Error code of Slack.
    Rejected(String),
    /// Reason why the lookup failed.
    Failed(String),
    /// Wait that Slack demands before the next call.
    RateLimited(Duration),
}

/// Result of requesting a Socket Mode connection.
pub enum SocketAddress {
    /// WebSocket URL with a ticket for one connection.
    Url(Secret),
    /// Error code of Slack.
    Rejected(String),
    /// Reason why the request failed.
    Failed(String),
}

/// Rate limit by Slack, with the wait before the next call.
#[derive(Debug)]
struct RateLimited(Duration);

impl fmt::Display for RateLimited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rate limited for {:?}", self.0)
    }
}

impl std::error::Error for RateLimited {}

/// Client of `auth.test`, `bots.info` and `apps.connections.open`.
pub struct SlackApi {
    http: Client,
    base: Url,
}

impl SlackApi {
    /// Returns a client of the Web API at a base URL. Fails unless it is HTTPS or on this machine.
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
            .no_proxy() // a proxy from the environment would see tokens
            .timeout(TIMEOUT)
            .build()
            .context("failed to create the HTTP client")?;
        Ok(Self { http, base })
    }

    /// Looks up the installation of a bot token (`auth.test`) and its app (`bots.info`).
    pub async fn look_up_token(&self, token: &Secret) -> TokenLookup {
        self.try_look_up_token(token).await.unwrap_or_else(|error| match error.downcast_ref() {
            Some(RateLimited(time)) => TokenLookup::RateLimited(*time),
            None => TokenLookup::Failed(format!("{error:#}")),
        })
    }

    async fn try_look_up_token(&self, token: &Secret) -> anyhow::Result<TokenLookup> {
        let owner = self.call("auth.test", token, &[]).await?;
        if owner["ok"] != true {
            let code = owner["error"].as_str().unwrap_or("no error code");
            return Ok(TokenLookup::Rejected(code.chars().take(80).collect()));
        }
        let text = |name: &str| owner[name].as_str();
        let form = [("bot", "bot_id"), ("team_id", "team_id")];
        let form = form.map(|(argument, name)| (argument, text(name).unwrap_or_default()));
        let bot = self.call("bots.info", token, &form).await?;
        let is_org_wide = owner["is_enterprise_install"] == true;
        let team = text("team_id").filter(|team| !is_org_wide && !team.starts_with('E'));
        Ok(TokenLookup::Found(TokenFacts {
            installation: Installation {
                enterprise: text("enterprise_id").and_then(|id| id.parse().ok()),
                team: team.and_then(|id| id.parse().ok()),
            },
            bot_user: text("user_id").map(str::to_owned),
            app: bot["bot"]["app_id"].as_str().map(str::to_owned),
        }))
    }

    /// Requests the URL of a new Socket Mode connection (`apps.connections.open`).
    pub async fn open_socket(&self, token: &Secret) -> anyhow::Result<SocketAddress> {
        let response = match self.call("apps.connections.open", token, &[]).await {
            Ok(response) => response,
            Err(error) => return Ok(SocketAddress::Failed(format!("{error:#}"))),
        };
        if response["ok"] != true {
            let code = response["error"].as_str().unwrap_or("no error code");
            return Ok(SocketAddress::Rejected(code.chars().take(80).collect()));
        }
        let url = response["url"].as_str().unwrap_or_default();
        let is_secure = url.starts_with("wss://");
        // A Slack simulator on this machine has no certificate.
        let is_simulator = url.starts_with("ws://127.0.0.1:") && self.base.scheme() == "http";
        ensure!(is_secure || is_simulator, "apps.connections.open returned no wss:// URL");
        Ok(SocketAddress::Url(Secret::new(url.to_owned())?))
    }

    async fn call(
        &self,
        method: &str,
        token: &Secret,
        form: &[(&str, &str)],
    ) -> anyhow::Result<Value> {
        let url = self.base.join(method).context("TIDEGATE_SLACK_API_URL is not a base URL")?;
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
            ensure!(
                body.len() + chunk.len() <= RESPONSE_BYTES_MAX,
                "the response of {method} exceeds {RESPONSE_BYTES_MAX} bytes"
            );
            body.extend_from_slice(&chunk);
        }
        match serde_json::from_str(&repair(&body)) {
            Ok(parsed) if response.status().is_success() => Ok(parsed),
            _ => bail!("{method} returned {}", response.status()),
        }
    }
}
