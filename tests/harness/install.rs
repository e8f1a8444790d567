//! Installations by OAuth: a control API with an app, and HTTP clients that act as browsers.

use crate::{
    slack::{Receipt, oauth::Allowed, webhook::Webhook},
    test_env::{App, Size, TestEnv, agent_id},
};
use reqwest::{Response, StatusCode, redirect::Policy};
use serde_json::{Value, json};
use sqlx::AssertSqlSafe;
use std::collections::BTreeMap;

/// Slack's id of the app.
pub const APP: &str = "A0HELPER";
/// Client id of the app.
pub const CLIENT: &str = "1.2";
/// Signing secret of all apps.
pub const SIGNING: &str = "signing-secret-of-helper";

/// A control API with an app, two organizations and a key of all organizations.
pub struct Setup {
    /// Test environment.
    pub env: TestEnv,
    /// API key of an operator.
    pub key: String,
    /// HTTP client without cookies.
    pub http: reqwest::Client,
}

/// An HTTP client that acts as a browser: it keeps cookies and follows no redirect by itself.
pub struct Browser {
    http: reqwest::Client,
    cookies: BTreeMap<String, String>,
}

impl Default for Browser {
    fn default() -> Self {
        Self::new()
    }
}

impl Browser {
    /// Starts a browser without cookies.
    pub fn new() -> Self {
        let http = reqwest::Client::builder().redirect(Policy::none()).build();
        Self { http: http.expect("a client"), cookies: BTreeMap::new() }
    }

    async fn send(&mut self, request: reqwest::RequestBuilder) -> Response {
        let cookies: Vec<String> =
            self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let response = request.header("cookie", cookies.join("; ")).send().await.expect("a page");
        for set in response.headers().get_all("set-cookie") {
            let text = set.to_str().expect("text");
            for attribute in ["Path=/", "Secure", "HttpOnly", "SameSite=Lax", "Max-Age="] {
                assert!(text.contains(attribute), "{text}");
            }
            let (name, rest) = text.split_once('=').expect("a name");
            let value = rest.split(';').next().expect("a value");
            self.cookies.insert(name.to_owned(), value.to_owned());
        }
        response
    }

    /// Opens an address.
    pub async fn open(&mut self, url: &str) -> Response {
        self.send(self.http.get(url)).await
    }

    /// Clicks "Add to Slack" on the page of a link. Returns the address of Slack's page.
    pub async fn begin(&mut self, link: &str) -> String {
        let page = self.open(link).await;
        assert_eq!(page.status(), StatusCode::OK);
        let click = self.http.post(link).header("sec-fetch-site", "same-origin");
        location(&self.send(click).await)
    }
}

/// Returns the address of a redirect.
pub fn location(response: &Response) -> String {
    assert_eq!(response.status(), StatusCode::SEE_OTHER, "{response:?}");
    response.headers()["location"].to_str().expect("text").to_owned()
}

/// Returns a parameter of an address.
pub fn parameter(url: &str, name: &str) -> String {
    let (_, query) = url.split_once('?').expect("a query");
    let mut fields = form_urlencoded::parse(query.as_bytes());
    fields.find(|(n, _)| n == name).expect("the parameter").1.into_owned()
}

/// Replaces a parameter of an address.
pub fn with_parameter(url: &str, name: &str, value: &str) -> String {
    let (base, query) = url.split_once('?').expect("a query");
    let fields = form_urlencoded::parse(query.as_bytes()).filter(|(n, _)| n != name);
    let mut made = form_urlencoded::Serializer::new(String::new());
    made.extend_pairs(fields).append_pair(name, value);
    format!("{base}?{}", made.finish())
}

fn app_file(env: &TestEnv, app: &str, client: &str, secret: &str, more: &str) -> String {
    for (kind, text) in [("client", secret), ("signing", SIGNING)] {
        env.write(&format!("{app}.{kind}"), text).expect("written");
    }
    let base = env.controls[0].path("");
    format!(
        "[[app]]\nid = \"{app}\"\nname = \"Helper\"\nclient_id = \"{client}\"\n\
         client_secret = \"file:{app}.client\"\nsigning_secret = \"file:{app}.signing\"\n\
         scopes = [\"app_mentions:read\", \"channels:history\", \"chat:write\"]\n\
         optional_scopes = [\"files:read\"]\nredirect_url = \"{base}/slack/oauth/callback\"\n\
         return_urls = [\"https://app.example/slack\"]\nagent = \"{}\"\n\
         contact = \"support@helper.example\"\n{more}",
        agent_id()
    )
}

impl Setup {
    /// Starts the servers, a control API and processes, and declares the app.
    pub async fn start(size: Size) -> Self {
        let mut env = TestEnv::without_processes(size).await.expect("servers");
        env.start_control().await.expect("a control API");
        env.start_processes().await.expect("processes");
        let setup = Self { key: key(&env, "operator", None), env, http: reqwest::Client::new() };
        setup.apply(&[(APP, CLIENT, "client-secret")]);
        setup
    }

    /// Declares two organizations, their agents and apps. Registers the apps in Slack.
    pub fn apply(&self, apps: &[(&str, &str, &str)]) {
        let env = &self.env;
        let mut file = String::new();
        env.write("agent.secret", "agent-secret-of-organizations").expect("written");
        for org in ["acme", "beta"] {
            file += &format!(
                "[[organization]]\nid = \"{org}\"\nname = \"The {org} company\"\n\
                 [[agent]]\norganization = \"{org}\"\nid = \"{}\"\nurl = \"{}\"\n\
                 secret = \"file:agent.secret\"\n",
                agent_id(),
                env.agent.url()
            );
        }
        for (app, client, secret) in apps {
            file += &app_file(env, app, client, secret, "");
            let redirect = format!("{}/slack/oauth/callback", env.controls[0].path(""));
            env.slack.register_app(app, client, secret, &redirect);
        }
        let file = env.write("apps.toml", &file).expect("written");
        env.tidegate(&["apply", "-f", file.to_str().expect("UTF-8")]).expect("applied");
    }

    /// Sends JSON to the API.
    pub async fn post(&self, key: &str, path: &str, body: &Value) -> (StatusCode, Value) {
        let url = self.env.controls[0].path(path);
        let response = self.http.post(url).bearer_auth(key).json(body).send().await;
        let response = response.expect("an answer");
        (response.status(), response.json().await.unwrap_or_default())
    }

    /// Creates an install link. Returns its address.
    pub async fn link(&self, org: &str, body: Value) -> String {
        let path = format!("/v1/organizations/{org}/install-links");
        let (status, made) = self.post(&self.key, &path, &body).await;
        assert_eq!(status, StatusCode::CREATED, "{made}");
        made["url"].as_str().expect("an address").to_owned()
    }

    /// Installs in a workspace from a new link of an organization. Returns the last page.
    pub async fn install(&self, org: &str, allowed: &Allowed) -> Response {
        let link = self.link(org, json!({ "app": APP })).await;
        let mut browser = Browser::new();
        let slack = browser.begin(&link).await;
        let back = self.env.slack.allow(&slack, allowed).expect("Slack's page");
        browser.open(&back).await
    }

    /// Returns all connections.
    pub async fn connections(&self) -> Vec<shared::store::ConnectionSummary> {
        self.env.store.connection_summaries(None).await.expect("Postgres")
    }

    /// Returns the only connection as an [`App`], for which the harness can send webhooks.
    pub async fn app(&self) -> App {
        let connections = self.connections().await;
        let [found] = &connections[..] else { panic!("{connections:?}") };
        let token = self.env.store.load_bot_token(found.id).await.expect("Postgres");
        App {
            connection: found.id,
            org: found.organization.clone(),
            secret: SIGNING.to_owned(),
            token: token.map(|token| token.expose().to_owned()).unwrap_or_default(),
            app: APP.to_owned(),
            team: found.team.as_ref().map(ToString::to_string).unwrap_or_default(),
            bot_user: found.bot_user.clone().unwrap_or_default(),
        }
    }

    /// Returns the connection of a workspace as an [`App`] without a token.
    pub async fn app_in(&self, team: &str) -> App {
        let connections = self.connections().await;
        let of_team = |it: &&shared::store::ConnectionSummary| {
            it.team.as_ref().is_some_and(|found| found.as_str() == team)
        };
        let of_team: Vec<_> = connections.iter().filter(of_team).collect();
        let [found] = of_team[..] else { panic!("not one connection of {team}: {of_team:?}") };
        App {
            connection: found.id,
            org: found.organization.clone(),
            secret: SIGNING.to_owned(),
            token: String::new(),
            app: APP.to_owned(),
            team: team.to_owned(),
            bot_user: found.bot_user.clone().unwrap_or_default(),
        }
    }

    /// Sends a mention of the bot and waits for the agent's answer.
    pub async fn mention(&self, app: &App, text: &str) {
        let channel = "C0GENERAL";
        let mention = format!("<@{}> {text}", app.bot_user);
        let ts = self.env.slack.ts();
        let webhook = Webhook::message_event(
            &self.env.slack,
            app,
            "app_mention",
            channel,
            "U1",
            &mention,
            &ts,
        );
        let url = self.env.ingests[0].path("/slack/events");
        let answer = self.env.slack.send(&url, SIGNING, &webhook).await.expect("an answer");
        assert_eq!(answer.status, 200, "the connection is active on every ingest");
        let wanted = |receipt: &Receipt| receipt.text().contains(text);
        self.env.slack.wait_for_receipt(text, wanted).await;
    }

    /// Returns the number that a query of Postgres selects.
    pub async fn count(&self, sql: &str) -> i64 {
        let query = sqlx::query_scalar(AssertSqlSafe(sql.to_owned()));
        query.fetch_one(&self.env.pool).await.expect("Postgres")
    }
}

/// Creates an API key. Without an organization the key is for all organizations.
pub fn key(env: &TestEnv, role: &str, org: Option<&str>) -> String {
    let mut args = vec!["api-keys", "create", "--role", role];
    match org {
        Some(org) => args.extend(["--org", org]),
        None => args.push("--all-orgs"),
    }
    env.tidegate(&args).expect("a key").trim().to_owned()
}
