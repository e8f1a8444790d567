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
use tokio::time::{Instant, sleep_until};

/// Maximum time of a call.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Maximum bytes of a response.
const RESPONSE_BYTES_MAX: usize = 64 << 10;
/// Minimum interval between two tokens. Each takes two calls, and Slack allows a few hundred calls
/// of `auth.test` per minute.
const LOOKUP_INTERVAL: Duration = Duration::from_millis(400);
/// Maximum attempts to look up a token.
const ATTEMPTS_MAX: u32 = 5;
/// Wait after a call that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Seconds to wait after a 429 without `Retry-After`.
const DEFAULT_RETRY_AFTER: u64 = 30;

/// Maximum length of an error code that is printed.
const ERROR_CODE_CHARS_MAX: usize = 80;

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
    /// Error code of Slack. The same call fails again.
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
    /// Error code of Slack. The same call fails again.
    Rejected(String),
    /// Reason why the request failed.
    Failed(String),
    /// Wait that Slack demands before the next call.
    RateLimited(Duration),
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

/// Error codes of failures that pass.
const TEMPORARY_ERRORS: [&str; 5] = [
    "fatal_error",
    "internal_error",
    "request_timeout",
    "service_unavailable",
    "team_added_to_org",
];

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
        if let Some(code) = rejection(&owner) {
            return Ok(TokenLookup::Rejected(code));
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
            Err(error) => {
                return Ok(match error.downcast_ref() {
                    Some(RateLimited(time)) => SocketAddress::RateLimited(*time),
                    None => SocketAddress::Failed(format!("{error:#}")),
                });
            }
        };
        if let Some(code) = rejection(&response) {
            return Ok(SocketAddress::Rejected(code));
        }
        let url = response["url"].as_str().unwrap_or_default();
        let is_secure = url.starts_with("wss://");
        // A Slack simulator on this machine has no certificate.
        let is_simulator = url.starts_with("ws://127.0.0.1:") && self.base.scheme() == "http";
        ensure!(is_secure || is_simulator, "apps.connections.open returned no wss:// URL");
        Ok(SocketAddress::Url(Secret::new(url.to_owned())?))
    }

    /// Calls a method. Returns an error if the call may succeed later.
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
        let parsed: Value = match serde_json::from_str(&repair(&body)) {
            Ok(parsed) if response.status().is_success() => parsed,
            _ => bail!("{method} returned {}", response.status()),
        };
        match rejection(&parsed).as_deref() {
            Some("ratelimited") => {
                Err(RateLimited(Duration::from_secs(DEFAULT_RETRY_AFTER)).into())
            }
            Some(code) if TEMPORARY_ERRORS.contains(&code) => bail!("{method} returned {code}"),
            _ => Ok(parsed),
        }
    }
}

/// Calls `look_up` within Slack's rate limits, and again if it fails. Returns the last result.
///
/// `next` is the time before which Slack must not be called.
pub async fn look_up_paced(
    look_up: impl AsyncFn() -> TokenLookup,
    next: &mut Instant,
) -> TokenLookup {
    let mut attempts = 0;
    loop {
        sleep_until(*next).await;
        *next = Instant::now() + LOOKUP_INTERVAL;
        attempts += 1;
        let lookup = look_up().await;
        match &lookup {
            TokenLookup::Found(_) | TokenLookup::Rejected(_) => return lookup,
            TokenLookup::RateLimited(time) => *next = Instant::now() + *time,
            TokenLookup::Failed(_) => *next = Instant::now() + RETRY_INTERVAL,
        }
        if attempts == ATTEMPTS_MAX {
            return lookup;
        }
    }
}

/// Returns the error code of a response, or `None` if the call succeeded.
fn rejection(response: &Value) -> Option<String> {
    let code = response["error"].as_str().unwrap_or("no error code");
    (response["ok"] != true).then(|| code.chars().take(ERROR_CODE_CHARS_MAX).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    /// The wait after the last attempt delays the next token, not the result.
    #[tokio::test(start_paused = true)]
    async fn returns_after_last_attempt() {
        const WAIT: Duration = Duration::from_secs(30);
        let (began, mut next) = (Instant::now(), Instant::now());
        let limited = async || TokenLookup::RateLimited(WAIT);
        assert!(matches!(look_up_paced(limited, &mut next).await, TokenLookup::RateLimited(_)));
        let waited = (WAIT * (ATTEMPTS_MAX - 1)).as_secs();
        assert_eq!(began.elapsed().as_secs(), waited);
        assert_eq!((next - began).as_secs(), waited + WAIT.as_secs());
    }

    /// A call fails for good only for errors that a later call has as well.
    #[tokio::test]
    async fn tells_temporary_errors_apart() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let base = format!("http://{}/", listener.local_addr().expect("an address"));
        let api = SlackApi::new(&base.parse().expect("a URL")).expect("a client");
        let token = Secret::new("xapp-1".into()).expect("not empty");
        let answer = async |head: &str, body: &str| {
            let (mut stream, _) = listener.accept().await.expect("a call");
            let _request = stream.read(&mut [0; 4096]).await.expect("a request");
            let length = body.len();
            let text = format!(
                "HTTP/1.1 {head}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
            );
            stream.write_all(text.as_bytes()).await.expect("sent");
        };
        let open = async |head: &str, body: &str| {
            let (opened, ()) = tokio::join!(api.open_socket(&token), answer(head, body));
            opened.expect("a result")
        };
        for code in TEMPORARY_ERRORS {
            let failed = open("200 OK", &format!(r#"{{"ok":false,"error":"{code}"}}"#)).await;
            assert!(matches!(failed, SocketAddress::Failed(_)), "{code}");
        }
        let limited = open("429 Too Many Requests\r\nretry-after: 7", "").await;
        assert!(matches!(limited, SocketAddress::RateLimited(wait) if wait.as_secs() == 7));
        let limited = open("200 OK", r#"{"ok":false,"error":"ratelimited"}"#).await;
        assert!(matches!(limited, SocketAddress::RateLimited(_)));
        let rejected = open("200 OK", r#"{"ok":false,"error":"invalid_auth"}"#).await;
        assert!(matches!(rejected, SocketAddress::Rejected(code) if code == "invalid_auth"));
        let answered = answer("200 OK", r#"{"ok":false,"error":"internal_error"}"#);
        let (looked_up, ()) = tokio::join!(api.look_up_token(&token), answered);
        assert!(matches!(looked_up, TokenLookup::Failed(_)));
    }
}
