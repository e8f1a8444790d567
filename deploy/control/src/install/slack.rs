//! Client of Slack's `oauth.v2.access`, and of `auth.test` for a token.

use axum::http::header::CONTENT_TYPE;
use reqwest::{Client, StatusCode, Url, redirect::Policy};
use serde::Deserialize;
use shared::{
    domain::{AppId, CodeVerifier, EnterpriseId, TeamId, UserId},
    secrets::Secret,
    slack::repair,
    store::{App, InstallRotation},
};
use std::time::Duration;

/// Timeout of a call.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Maximum size of a response in bytes.
const RESPONSE_BYTES_MAX: usize = 256 << 10;
/// Slack's error for a wrong client secret.
const BAD_CLIENT_SECRET: &str = "bad_client_secret";

/// Client of Slack.
pub struct Slack {
    http: Client,
    api: Url,
}

/// Installation that Slack grants in exchange for a code.
#[derive(Debug)]
pub struct Grant {
    /// Enterprise organization, if any.
    pub enterprise: Option<EnterpriseId>,
    /// Workspace. `None` for an organization-wide installation.
    pub team: Option<TeamId>,
    /// Bot token.
    pub bot_token: Secret,
    /// Bot user.
    pub bot_user: UserId,
    /// Granted scopes.
    pub scopes: Vec<String>,
    /// Person who installed the app.
    pub installer: UserId,
    /// Token rotation, if it is enabled for the app.
    pub rotation: Option<InstallRotation>,
}

/// Failure to exchange a code.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeError {
    /// Slack refused the code, with its error.
    #[error("Slack refused the code: {0}")]
    Refused(String),
    /// Slack's response is for another app, or incomplete.
    #[error("unexpected response from Slack: {0}")]
    UnexpectedResponse(&'static str),
    /// Slack was unreachable, or did not return its JSON.
    #[error("failed to call Slack: {0}")]
    Unavailable(String),
}

#[derive(Deserialize)]
struct Answer {
    ok: bool,
    error: Option<String>,
    access_token: Option<String>,
    token_type: Option<String>,
    scope: Option<String>,
    bot_user_id: Option<UserId>,
    app_id: Option<AppId>,
    team: Option<Place<TeamId>>,
    enterprise: Option<Place<EnterpriseId>>,
    #[serde(default)]
    is_enterprise_install: bool,
    authed_user: Option<Place<UserId>>,
    refresh_token: Option<String>,
    expires_in: Option<u64>,
}

#[derive(Deserialize)]
struct Place<T> {
    id: T,
}

impl Slack {
    /// Creates a client. `api` is the base URL of the Web API.
    pub fn new(mut api: Url) -> reqwest::Result<Self> {
        if !api.path().ends_with('/') {
            api.set_path(&format!("{}/", api.path())); // otherwise `join` replaces the last segment
        }
        let http = Client::builder()
            .redirect(Policy::none())
            .no_proxy() // a proxy of the environment would see secrets
            .https_only(api.scheme() == "https")
            .timeout(TIMEOUT)
            .user_agent(concat!("tidegate/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { http, api })
    }

    /// Returns the URL of Slack's page on which a person authorizes an app.
    pub fn authorize_url(&self, query: &[(&str, &str)]) -> Option<Url> {
        let mut url = self.api.join("/oauth/v2/authorize").ok()?;
        url.query_pairs_mut().extend_pairs(query);
        Some(url)
    }

    /// Returns the origin of Slack's pages.
    pub fn origin(&self) -> String {
        self.api.origin().ascii_serialization()
    }

    /// Exchanges a code for tokens, with the newest client secret of the app that Slack accepts.
    pub async fn exchange(
        &self,
        app: &App,
        code: &str,
        redirect_url: &str,
        verifier: &CodeVerifier,
    ) -> Result<Grant, ExchangeError> {
        let mut last = ExchangeError::UnexpectedResponse("the app has no client secret");
        for secret in &app.client_secrets {
            let form = [
                ("code", code),
                ("redirect_uri", redirect_url),
                ("code_verifier", verifier.reveal()),
            ];
            let request = self.post("oauth.v2.access", &form)?;
            let request = request.basic_auth(&app.client_id, Some(secret.expose()));
            match grant(read(request).await?, &app.id) {
                Err(ExchangeError::Refused(code)) if code == BAD_CLIENT_SECRET => {
                    last = ExchangeError::Refused(code);
                }
                result => return result,
            }
        }
        Err(last)
    }

    /// Returns whether Slack accepts a token. True without a response, because it may be valid.
    pub async fn accepts(&self, token: &Secret) -> bool {
        let Ok(request) = self.post("auth.test", &[]) else { return true };
        read(request.bearer_auth(token.expose())).await.map_or(true, |answer| answer.ok)
    }

    fn post(
        &self,
        method: &str,
        form: &[(&str, &str)],
    ) -> Result<reqwest::RequestBuilder, ExchangeError> {
        let url = self.api.join(method);
        let url = url.map_err(|error| ExchangeError::Unavailable(error.to_string()))?;
        let mut body = form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(form);
        let kind = "application/x-www-form-urlencoded";
        Ok(self.http.post(url).header(CONTENT_TYPE, kind).body(body.finish()))
    }
}

async fn read(request: reqwest::RequestBuilder) -> Result<Answer, ExchangeError> {
    let unavailable =
        |error: reqwest::Error| ExchangeError::Unavailable(error.without_url().to_string());
    let mut response = request.send().await.map_err(unavailable)?;
    let status = response.status();
    if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() {
        return Err(ExchangeError::Unavailable(status.to_string()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(unavailable)? {
        if body.len() + chunk.len() > RESPONSE_BYTES_MAX {
            return Err(ExchangeError::Unavailable("the response is too long".into()));
        }
        body.extend_from_slice(&chunk);
    }
    // The error of serde would quote parts of the response, which has tokens.
    let answer = serde_json::from_str(&repair(&body));
    answer.map_err(|_| ExchangeError::Unavailable(format!("{status}, not Slack's JSON")))
}

/// Returns the grant of a response. Fails if it is incomplete or not for `app`.
fn grant(answer: Answer, app: &AppId) -> Result<Grant, ExchangeError> {
    use ExchangeError::UnexpectedResponse;
    if !answer.ok {
        let code = answer.error.unwrap_or_default();
        return Err(ExchangeError::Refused(code.chars().take(80).collect()));
    }
    if answer.app_id.as_ref() != Some(app) {
        return Err(UnexpectedResponse("it is for another app"));
    }
    if answer.token_type.as_deref() != Some("bot") {
        return Err(UnexpectedResponse("it has no bot token"));
    }
    let enterprise = answer.enterprise.map(|place| place.id);
    let team = answer.team.map(|place| place.id).filter(|_| !answer.is_enterprise_install);
    if team.is_none() && (enterprise.is_none() || !answer.is_enterprise_install) {
        return Err(UnexpectedResponse("it names no workspace"));
    }
    let secret = |text: Option<String>| text.and_then(|text| Secret::new(text).ok());
    let bot_token = secret(answer.access_token).ok_or(UnexpectedResponse("it has no token"))?;
    let rotation = match (secret(answer.refresh_token), answer.expires_in) {
        (Some(refresh_token), Some(seconds)) => {
            let expires_in = Duration::from_secs(seconds);
            Some(InstallRotation { refresh_token, expires_in })
        }
        (None, None) => None,
        _ => return Err(UnexpectedResponse("it has only one of refresh_token and expires_in")),
    };
    Ok(Grant {
        enterprise,
        team,
        bot_token,
        bot_user: answer.bot_user_id.ok_or(UnexpectedResponse("it names no bot"))?,
        scopes: split(answer.scope.as_deref().unwrap_or_default()),
        installer: answer.authed_user.ok_or(UnexpectedResponse("it names no installer"))?.id,
        rotation,
    })
}

fn split(scopes: &str) -> Vec<String> {
    scopes.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn read_grant(change: impl FnOnce(&mut Value)) -> Result<Grant, ExchangeError> {
        let mut answer = json!({
            "ok": true, "access_token": "xoxe.xoxb-1", "token_type": "bot", "scope": "chat:write",
            "bot_user_id": "U0", "app_id": "A1", "team": { "id": "T1", "name": "Team" },
            "enterprise": null, "is_enterprise_install": false, "authed_user": { "id": "U1" },
            "refresh_token": "xoxe-1", "expires_in": 43200,
        });
        change(&mut answer);
        let answer = serde_json::from_value(answer).expect("an answer");
        grant(answer, &"A1".parse().expect("an id"))
    }

    #[test]
    fn reads_documented_responses() {
        let granted = read_grant(|_| {}).expect("a grant");
        assert_eq!(granted.team.as_ref().map(TeamId::as_str), Some("T1"));
        assert_eq!(granted.rotation.expect("rotation").expires_in.as_secs(), 43_200);
        let of_org = read_grant(|answer| {
            answer["team"] = Value::Null;
            answer["enterprise"] = json!({ "id": "E1" });
            answer["is_enterprise_install"] = true.into();
        });
        let of_org = of_org.expect("a grant");
        assert_eq!(
            (of_org.team, of_org.enterprise.as_ref().map(EnterpriseId::as_str)),
            (None, Some("E1"))
        );
        let old = read_grant(|answer| {
            let fields = answer.as_object_mut().expect("an object");
            fields.remove("refresh_token");
            fields.remove("expires_in");
        });
        assert!(old.expect("a grant").rotation.is_none());
    }

    #[test]
    fn rejects_unexpected_responses() {
        let rejects = |change: &dyn Fn(&mut Value)| {
            matches!(read_grant(|answer| change(answer)), Err(ExchangeError::UnexpectedResponse(_)))
        };
        assert!(rejects(&|answer| answer["app_id"] = "A2".into()));
        assert!(rejects(&|answer| answer["app_id"] = Value::Null));
        assert!(rejects(&|answer| answer["team"] = Value::Null));
        assert!(rejects(&|answer| answer["token_type"] = "user".into()));
        assert!(rejects(&|answer| answer["access_token"] = "".into()));
        assert!(rejects(&|answer| answer["expires_in"] = Value::Null));
        assert!(rejects(&|answer| answer["authed_user"] = Value::Null));
        let refused = read_grant(|answer| {
            *answer = json!({ "ok": false, "error": "invalid_code" });
        });
        assert!(matches!(refused, Err(ExchangeError::Refused(code)) if code == "invalid_code"));
    }
}
