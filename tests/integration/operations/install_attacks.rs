//! Attacks on installations by OAuth. Each is refused, and nothing is exchanged or stored.

use reqwest::StatusCode;
use serde_json::{Value, json};
use tests::{
    install::{APP, Browser, CLIENT, Setup, parameter, with_parameter},
    slack::oauth::Allowed,
    test_env::Size,
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };
const SECOND: &str = "A0SECOND";

/// Installation that a person has allowed, with the browser and the address that it opens next.
struct Attack {
    setup: Setup,
    browser: Browser,
    slack: String,
    back: String,
}

impl Attack {
    async fn start() -> Self {
        let setup = Setup::start(SERVERS).await;
        let link = setup.link("acme", json!({ "app": APP })).await;
        let mut browser = Browser::new();
        let slack = browser.begin(&link).await;
        let back = setup.env.slack.allow(&slack, &Allowed::in_team("T0NEW")).expect("a page");
        Self { setup, browser, slack, back }
    }

    /// Opens an address. Checks that it is rejected with this status and that no code was
    /// exchanged.
    async fn refuses(&mut self, url: &str, status: StatusCode, title: &str) {
        let page = self.browser.open(url).await;
        let (found, text) = (page.status(), page.text().await.expect("a page"));
        assert!(found == status && text.contains(title), "{found}: {text}");
        let exchanged = self.setup.env.slack.calls_of("oauth.v2.access");
        assert!(exchanged.is_empty(), "{exchanged:?}");
        assert!(self.setup.connections().await.is_empty());
    }

    /// Opens an address. Checks that Slack refuses the exchange with an error.
    async fn fails_at_slack(&mut self, url: &str, error: &str) {
        let page = self.browser.open(url).await;
        let (found, text) = (page.status(), page.text().await.expect("a page"));
        assert!(found == StatusCode::BAD_GATEWAY && text.contains(error), "{found}: {text}");
        assert!(self.setup.connections().await.is_empty());
    }

    /// Checks that the installation itself still succeeds.
    async fn succeeds(&mut self) {
        let back = self.back.clone();
        assert_eq!(self.browser.open(&back).await.status(), StatusCode::OK);
        assert_eq!(self.setup.connections().await.len(), 1);
    }
}

/// Invented states are rejected and counted, and the installation itself still succeeds.
#[tokio::test]
async fn rejects_forged_state() {
    let mut attack = Attack::start().await;
    for state in ["", "x", "AAAAAAAAAAAAAAAAAAAAAA", &"A".repeat(4_000), "%00", "' or 1=1 --"] {
        let forged = with_parameter(&attack.back, "state", state);
        attack.refuses(&forged, StatusCode::BAD_REQUEST, "Unknown installation").await;
    }
    attack.succeeds().await;
    // An alert watches both.
    for (outcome, count) in [("state_refused", 6.0), ("installed", 1.0)] {
        let metric = format!("tidegate_control_installs_total{{outcome=\"{outcome}\"}}");
        let counted = attack.setup.env.controls[0].metric(&metric).await;
        assert_eq!(counted.expect("a metric"), count, "{outcome}");
    }
}

/// A state that was used is rejected, and its code is exchanged once.
#[tokio::test]
async fn rejects_replayed_state() {
    let mut attack = Attack::start().await;
    attack.succeeds().await;
    let back = attack.back.clone();
    let again = attack.browser.open(&back).await;
    assert_eq!(again.status(), StatusCode::CONFLICT);
    assert_eq!(attack.setup.env.slack.calls_of("oauth.v2.access").len(), 1);
}

/// An attacker's code and state are rejected in the browser of a victim who has begun another
/// installation.
#[tokio::test]
async fn rejects_foreign_browser() {
    let mut attack = Attack::start().await;
    let link = attack.setup.link("beta", json!({ "app": APP })).await;
    let mut victim = Browser::new();
    victim.begin(&link).await;
    std::mem::swap(&mut attack.browser, &mut victim);
    let back = attack.back.clone();
    attack.refuses(&back, StatusCode::FORBIDDEN, "Started in another browser").await;
    std::mem::swap(&mut attack.browser, &mut victim);
    attack.succeeds().await;
}

/// Code and state are rejected in a browser without the cookie of the installation.
#[tokio::test]
async fn rejects_missing_cookie() {
    let mut attack = Attack::start().await;
    let mut own = std::mem::replace(&mut attack.browser, Browser::new());
    let back = attack.back.clone();
    attack.refuses(&back, StatusCode::FORBIDDEN, "Started in another browser").await;
    std::mem::swap(&mut attack.browser, &mut own);
    attack.succeeds().await;
}

/// A state is rejected after ten minutes.
#[tokio::test]
async fn rejects_expired_state() {
    let mut attack = Attack::start().await;
    let lifetime = "select extract(epoch from expires_at - created_at)::bigint from install_states";
    assert_eq!(attack.setup.count(lifetime).await, 600);
    let expire = "update install_states set expires_at = now()";
    sqlx::query(expire).execute(&attack.setup.env.pool).await.expect("expired");
    let back = attack.back.clone();
    attack.refuses(&back, StatusCode::GONE, "Expired").await;
}

/// The code of one app with the state of another fails at Slack, which knows the client of the
/// code.
#[tokio::test]
async fn rejects_code_of_another_app() {
    let mut attack = Attack::start().await;
    attack.setup.apply(&[(APP, CLIENT, "client-secret"), (SECOND, "3.4", "second-secret")]);
    let link = attack.setup.link("acme", json!({ "app": SECOND })).await;
    let slack = attack.browser.begin(&link).await;
    let other = attack.setup.env.slack.allow(&slack, &Allowed::in_team("T0NEW")).expect("a page");
    let mixed = with_parameter(&attack.back, "code", &parameter(&other, "code"));
    attack.fails_at_slack(&mixed, "invalid_code").await;
}

/// A code that was granted for one app fails in the installation of another, whose client exchanges
/// it.
#[tokio::test]
async fn rejects_foreign_state() {
    let mut attack = Attack::start().await;
    attack.setup.apply(&[(APP, CLIENT, "client-secret"), (SECOND, "3.4", "second-secret")]);
    let link = attack.setup.link("acme", json!({ "app": SECOND })).await;
    let slack = attack.browser.begin(&link).await;
    // The attacker changes the client of the request, and keeps state and challenge.
    let changed = with_parameter(&slack, "client_id", CLIENT);
    let back = attack.setup.env.slack.allow(&changed, &Allowed::in_team("T0NEW")).expect("a page");
    attack.fails_at_slack(&back, "invalid_code").await;
}

/// A used code with a fresh state fails at Slack and changes nothing.
#[tokio::test]
async fn rejects_code_used_twice() {
    let mut attack = Attack::start().await;
    attack.succeeds().await;
    let link = attack.setup.link("beta", json!({ "app": APP })).await;
    let slack = attack.browser.begin(&link).await;
    let fresh = with_parameter(&attack.back, "state", &parameter(&slack, "state"));
    let page = attack.browser.open(&fresh).await;
    assert_eq!(page.status(), StatusCode::BAD_GATEWAY);
    assert!(page.text().await.expect("a page").contains("invalid_code"));
    let made = attack.setup.connections().await;
    assert_eq!((made.len(), made[0].organization.as_str()), (1, "acme"));
}

/// A link leads back to declared addresses only, also when the declaration has changed since.
#[tokio::test]
async fn rejects_open_redirect() {
    let setup = Setup::start(SERVERS).await;
    let path = "/v1/organizations/acme/install-links";
    for url in [
        "https://evil.example/slack",
        "https://app.example.evil.example/slack",
        "https://app.example@evil.example/slack",
        "https://app.example/slackers",
        "https://app.example/slack/../admin",
        "//app.example/slack",
        "javascript:alert(1)",
        "http://app.example/slack",
    ] {
        let body = json!({ "app": APP, "return_url": url });
        let (status, why) = setup.post(&setup.key, path, &body).await;
        assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{url}: {why}");
    }
    let body = json!({ "app": APP, "return_url": "https://app.example/slack/done" });
    let link = setup.link("acme", body).await;
    let mut browser = Browser::new();
    let slack = browser.begin(&link).await;
    let back = setup.env.slack.allow(&slack, &Allowed::in_team("T0NEW")).expect("a page");
    let change = "update apps set return_urls = '{https://other.example/}'";
    sqlx::query(change).execute(&setup.env.pool).await.expect("changed");
    let page = browser.open(&back).await;
    assert_eq!(page.status(), StatusCode::OK, "a page, and no redirect: {page:?}");
}

/// A workspace of one organization can't be taken by a link of another.
#[tokio::test]
async fn rejects_foreign_workspace() {
    let mut attack = Attack::start().await;
    attack.succeeds().await;
    let before = attack.setup.app().await;
    let page = attack.setup.install("beta", &Allowed::in_team("T0NEW")).await;
    assert_eq!(page.status(), StatusCode::CONFLICT);
    let text = page.text().await.expect("a page");
    assert!(text.contains("support@helper.example"), "{text}");
    let after = attack.setup.app().await;
    assert_eq!((after.org.as_str(), &after.token), ("acme", &before.token));
}

/// Slack returns to declared addresses only, and a state whose address has changed is rejected.
#[tokio::test]
async fn rejects_wrong_redirect_uri() {
    let mut attack = Attack::start().await;
    let evil = with_parameter(&attack.slack, "redirect_uri", "https://evil.example/");
    assert!(attack.setup.env.slack.allow(&evil, &Allowed::in_team("T0NEW")).is_err());
    let change = "update install_states set redirect_url = redirect_url || '/other'";
    sqlx::query(change).execute(&attack.setup.env.pool).await.expect("changed");
    let back = attack.back.clone();
    attack.refuses(&back, StatusCode::CONFLICT, "redirect URL has changed").await;
}

/// A code that was granted for another challenge, or for none, fails at Slack.
#[tokio::test]
async fn rejects_wrong_code_verifier() {
    let mut attack = Attack::start().await;
    let link = attack.setup.link("beta", json!({ "app": APP })).await;
    let mut attacker = Browser::new();
    let theirs = attacker.begin(&link).await;
    let theirs =
        attack.setup.env.slack.allow(&theirs, &Allowed::in_team("T0EVIL")).expect("a page");
    let injected = with_parameter(&attack.back, "code", &parameter(&theirs, "code"));
    attack.fails_at_slack(&injected, "invalid_code_verifier").await;
    // A code for no challenge is refused as well: a verifier is always sent.
    let link = attack.setup.link("acme", json!({ "app": APP })).await;
    let slack = attack.browser.begin(&link).await;
    let (base, query) = slack.split_once('?').expect("a query");
    let fields = form_urlencoded::parse(query.as_bytes());
    let mut without = form_urlencoded::Serializer::new(String::new());
    without.extend_pairs(fields.filter(|(name, _)| !name.starts_with("code_challenge")));
    let plain = format!("{base}?{}", without.finish());
    let back = attack.setup.env.slack.allow(&plain, &Allowed::in_team("T0NEW")).expect("a page");
    attack.fails_at_slack(&back, "invalid_code_verifier").await;
}

/// The form is rejected if another site sends it: a person would install for an organization that
/// the page names.
#[tokio::test]
async fn rejects_foreign_form() {
    let attack = Attack::start().await;
    let link = attack.setup.link("acme", json!({ "app": APP })).await;
    let states = "select count(*) from install_states";
    let before = attack.setup.count(states).await;
    for headers in [
        &[("sec-fetch-site", "cross-site")][..],
        &[("sec-fetch-site", "same-site")],
        &[("origin", "https://evil.example")],
        &[],
    ] {
        let mut request = attack.setup.http.post(&link);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        assert_eq!(request.send().await.expect("a page").status(), StatusCode::FORBIDDEN);
    }
    assert_eq!(attack.setup.count(states).await, before);
}

/// Links are rejected that are unknown, revoked, used for another workspace, or requested with
/// another organization's key.
#[tokio::test]
async fn rejects_unusable_link() {
    let setup = Setup::start(SERVERS).await;
    let base = setup.env.controls[0].path("/install/");
    let unknown = format!("{base}{}", "A".repeat(32));
    for (url, status) in [(format!("{base}x"), 404), (unknown, 404)] {
        assert_eq!(Browser::new().open(&url).await.status().as_u16(), status, "{url}");
    }
    let of_beta = tests::install::key(&setup.env, "operator", Some("beta"));
    let body = json!({ "app": APP });
    let (status, why) = setup.post(&of_beta, "/v1/organizations/acme/install-links", &body).await;
    assert_eq!(status, StatusCode::NOT_FOUND, "{why}");

    let (_, made) = setup.post(&setup.key, "/v1/organizations/acme/install-links", &body).await;
    let url = made["url"].as_str().expect("an address");
    let mut browser = Browser::new();
    let slack = browser.begin(url).await;
    let back = setup.env.slack.allow(&slack, &Allowed::in_team("T0NEW")).expect("a page");
    let revoke = format!(
        "/v1/organizations/acme/install-links/{}/revoke",
        made["id"].as_str().expect("an id")
    );
    assert_eq!(setup.post(&of_beta, &revoke, &Value::Null).await.0, StatusCode::NOT_FOUND);
    assert_eq!(setup.post(&setup.key, &revoke, &Value::Null).await.0, StatusCode::NO_CONTENT);
    assert_eq!(browser.open(url).await.status(), StatusCode::GONE);
    assert_eq!(browser.open(&back).await.status(), StatusCode::CONFLICT, "revoked meanwhile");
    assert!(setup.connections().await.is_empty());

    let link = setup.link("acme", body).await;
    for (team, status) in [("T0ONE", 200), ("T0TWO", 409), ("T0ONE", 200)] {
        let slack = browser.begin(&link).await;
        let back = setup.env.slack.allow(&slack, &Allowed::in_team(team)).expect("a page");
        assert_eq!(browser.open(&back).await.status().as_u16(), status, "{team}");
    }
    assert_eq!(setup.connections().await.len(), 1, "a used link is valid for the same workspace");
}

/// A link and an open installation are rejected once the app is declared for another organization.
#[tokio::test]
async fn rejects_restricted_app() {
    let mut attack = Attack::start().await;
    let link = attack.setup.link("acme", json!({ "app": APP })).await;
    let restrict = "update apps set org_id = 'beta'";
    sqlx::query(restrict).execute(&attack.setup.env.pool).await.expect("restricted");
    let page = attack.browser.open(&link).await;
    assert_eq!(page.status(), StatusCode::GONE, "{:?}", page.text().await);
    let back = attack.back.clone();
    let page = attack.browser.open(&back).await;
    assert_eq!(page.status(), StatusCode::CONFLICT, "{:?}", page.text().await);
    assert!(attack.setup.connections().await.is_empty());
}
