//! Slack's OAuth v2: authorization codes, and the page on which a person allows an app.
//!
//! A code belongs to a client, a redirect URI and a challenge, is valid for ten minutes, and can be
//! used once. The page is HTML for tests with a browser; [`Slack::allow`] needs no browser.

use super::{Slack, http::Reply, tokens::Installation};
use anyhow::{Context, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

/// Lifetime of a code.
const CODE_LIFE: Duration = Duration::from_secs(600);

/// OAuth client: an app.
#[derive(Debug, Clone, Default)]
pub(super) struct Client {
    /// Valid client secret.
    pub secret: String,
    /// Slack's id of the app; empty for clients that only refresh tokens.
    pub app: String,
    /// Allowed redirect URIs.
    pub redirect_urls: Vec<String>,
}

/// Authorization code.
#[derive(Debug)]
pub(super) struct Code {
    /// Installation that the person allowed.
    pub installation: usize,
    /// Client, redirect URI and challenge of the request. `None` for a code that a test created.
    pub request: Option<(String, String, Option<String>)>,
    /// Person who installed the app.
    pub installer: String,
    /// End of validity.
    pub expires: SystemTime,
}

impl Code {
    /// Checks the arguments that `oauth.v2.access` sends with the code.
    pub(super) fn check(&self, args: &Value, now: SystemTime) -> Result<(), &'static str> {
        let text = |name: &str| args[name].as_str().unwrap_or_default();
        if self.expires <= now {
            return Err("invalid_code");
        }
        let Some((client, redirect, challenge)) = &self.request else { return Ok(()) };
        if client != text("client_id") {
            return Err("invalid_code");
        }
        if redirect != text("redirect_uri") {
            return Err("bad_redirect_uri");
        }
        let made = URL_SAFE_NO_PAD.encode(Sha256::digest(text("code_verifier").as_bytes()));
        match challenge {
            Some(challenge) if *challenge != made => Err("invalid_code_verifier"),
            None if !text("code_verifier").is_empty() => Err("invalid_code_verifier"),
            _ => Ok(()),
        }
    }
}

/// Returns the end of validity of a code.
pub(super) fn code_expiry(now: SystemTime) -> SystemTime {
    now + CODE_LIFE
}

/// Workspace or organization, person and scopes of an installation.
#[derive(Debug, Clone)]
pub struct Allowed {
    /// Workspace; `None` for the whole organization.
    pub team: Option<String>,
    /// Organization on Grid.
    pub enterprise: Option<String>,
    /// Person who installs the app.
    pub user: String,
    /// Scopes that the person does not grant.
    pub without: Vec<String>,
}

impl Allowed {
    /// Returns an installation with all scopes in a workspace.
    pub fn in_team(team: &str) -> Self {
        let (team, user) = (Some(team.to_owned()), "U0INSTALLER".to_owned());
        Self { team, enterprise: None, user, without: Vec::new() }
    }

    /// Returns an installation with all scopes by an admin for an organization.
    pub fn in_enterprise(enterprise: &str) -> Self {
        let enterprise = Some(enterprise.to_owned());
        Self { team: None, enterprise, user: "U0ADMIN".to_owned(), without: Vec::new() }
    }
}

/// Parameters of an authorization request.
struct Request {
    client: String,
    redirect: String,
    state: String,
    scopes: Vec<String>,
    challenge: Option<String>,
    app: String,
}

impl Slack {
    /// Registers an app with its client id and secret.
    pub fn register_app(&self, app: &str, client_id: &str, secret: &str, redirect_url: &str) {
        let client = Client {
            secret: secret.to_owned(),
            app: app.to_owned(),
            redirect_urls: vec![redirect_url.to_owned()],
        };
        self.state().tokens.clients.insert(client_id.to_owned(), client);
    }

    /// Replaces the client secret of an app. The previous secret is rejected at once.
    pub fn rotate_client_secret(&self, client_id: &str, secret: &str) {
        if let Some(client) = self.state().tokens.clients.get_mut(client_id) {
            client.secret = secret.to_owned();
        }
    }

    /// Removes an app from a workspace or organization, as a person does. Its tokens are rejected.
    pub fn uninstall(&self, app: &str, place: &str) {
        self.state().tokens.uninstall(app, place);
    }

    /// Allows the app on Slack's page, as a person does. Returns the address of the redirect.
    ///
    /// # Errors
    /// Slack's error, if its page shows one instead of redirecting.
    pub fn allow(&self, authorize_url: &str, allowed: &Allowed) -> anyhow::Result<String> {
        let (_, query) = authorize_url.split_once('?').context("the authorize URL has no query")?;
        ensure!(authorize_url.contains("/oauth/v2/authorize?"), "not the authorize URL of Slack");
        let request = self.authorize_request(query)?;
        let code = self.give_code(&request, allowed);
        Ok(redirect(&request, &[("code", &code)]))
    }

    /// Cancels on Slack's page, as a person does. Returns the address of the redirect.
    ///
    /// # Errors
    /// Slack's error, if its page shows one instead of redirecting.
    pub fn cancel(&self, authorize_url: &str) -> anyhow::Result<String> {
        let (_, query) = authorize_url.split_once('?').context("the authorize URL has no query")?;
        let request = self.authorize_request(query)?;
        Ok(redirect(&request, &[("error", "access_denied")]))
    }

    fn authorize_request(&self, query: &str) -> anyhow::Result<Request> {
        let fields: HashMap<String, String> =
            form_urlencoded::parse(query.as_bytes()).into_owned().collect();
        let text = |name: &str| fields.get(name).cloned().unwrap_or_default();
        let client = self.state().tokens.clients.get(&text("client_id")).cloned();
        let client = client.context("invalid_client_id")?;
        ensure!(client.redirect_urls.contains(&text("redirect_uri")), "bad_redirect_uri");
        let scopes: Vec<String> =
            text("scope").split(',').filter(|s| !s.is_empty()).map(str::to_owned).collect();
        ensure!(!scopes.is_empty(), "missing_scope");
        let challenge = fields.get("code_challenge").cloned();
        let is_s256 = text("code_challenge_method") == "S256";
        ensure!(challenge.is_none() || is_s256, "invalid_code_challenge_method");
        Ok(Request {
            client: text("client_id"),
            redirect: text("redirect_uri"),
            state: text("state"),
            scopes,
            challenge,
            app: client.app,
        })
    }

    fn give_code(&self, request: &Request, allowed: &Allowed) -> String {
        let mut installation = Installation::new(
            &request.app,
            allowed.team.as_deref().unwrap_or_default(),
            &format!("UBOT{}", request.app.trim_start_matches('A')),
        );
        installation.team = allowed.team.clone();
        installation.enterprise = allowed.enterprise.clone();
        let granted = request.scopes.iter().filter(|scope| !allowed.without.contains(scope));
        installation.scopes = granted.cloned().collect();
        let (client, redirect) = (request.client.clone(), request.redirect.clone());
        let request = Some((client, redirect, request.challenge.clone()));
        let now = self.clock.now();
        let user = allowed.user.clone();
        self.state().tokens.allow(installation, request, user, now)
    }
}

fn redirect(request: &Request, fields: &[(&str, &str)]) -> String {
    let mut query = form_urlencoded::Serializer::new(String::new());
    query.extend_pairs(fields);
    if !request.state.is_empty() {
        query.append_pair("state", &request.state);
    }
    format!("{}?{}", request.redirect, query.finish())
}

/// Answers a request for Slack's page with the page, or after a click with the redirect.
pub(super) fn page(slack: &Slack, path: &str, query: &str, form: &[u8]) -> Reply {
    let request = match slack.authorize_request(query) {
        Ok(request) => request,
        Err(error) => return Reply::text(400, &format!("<h1>Error</h1><p>{error}</p>")),
    };
    let fields: HashMap<String, String> = form_urlencoded::parse(form).into_owned().collect();
    match (path, fields.get("team")) {
        ("/oauth/v2/allow", Some(team)) => {
            let code = slack.give_code(&request, &Allowed::in_team(team));
            Reply::redirect(redirect(&request, &[("code", &code)]))
        }
        ("/oauth/v2/allow", None) => {
            Reply::redirect(redirect(&request, &[("error", "access_denied")]))
        }
        _ => {
            let action = format!("/oauth/v2/allow?{}", query.replace('&', "&amp;"));
            Reply::text(
                200,
                &format!(
                    "<!doctype html><title>Allow?</title><h1>Allow {}?</h1>\
                     <form method=\"post\" action=\"{action}\">\
                     <button id=\"allow\" name=\"team\" value=\"T0BROWSER\">Allow</button>\
                     <button id=\"cancel\">Cancel</button></form>",
                    request.app
                ),
            )
        }
    }
}
