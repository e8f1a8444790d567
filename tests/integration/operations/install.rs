//! Installations by OAuth: from a link to an answered mention, re-installations, removals and
//! moves.

use reqwest::StatusCode;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tests::{
    browser::{self, Scripts},
    eventually::eventually,
    install::{APP, Browser, CLIENT, SIGNING, Setup, key, location, parameter},
    slack::{oauth::Allowed, webhook::Webhook},
    test_env::{Size, TIMEOUT, agent_id},
};

const SERVERS: Size = Size { ingests: 0, workers: 0, own_postgres: false };
const SMALL: Size = Size { ingests: 1, workers: 1, own_postgres: false };
/// Maximum time from "Allow" to the answer of the first mention.
const FIRST_ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// From "Allow" to the first answered mention, with rotating tokens from the first one on.
#[tokio::test]
async fn answers_mention_after_install() {
    let setup = Setup::start(SMALL).await;
    let goes_to = "https://app.example/slack/done?step=2";
    let link = setup.link("acme", json!({ "app": APP, "return_url": goes_to })).await;
    let mut browser = Browser::new();
    let page = browser.open(&link).await;
    let policy = page.headers()["content-security-policy"].to_str().expect("text").to_owned();
    assert!(policy.contains("default-src 'none'") && policy.contains("frame-ancestors 'none'"));
    assert_eq!(page.headers()["cache-control"], "no-store");
    let text = page.text().await.expect("a page");
    assert!(text.contains("Helper") && text.contains("The acme company"), "{text}");
    assert!(text.contains("admin") && !text.contains("<script"), "{text}");

    let slack = browser.begin(&link).await;
    assert_eq!(parameter(&slack, "code_challenge_method"), "S256");
    let scopes = "app_mentions:read,channels:history,chat:write,files:read";
    assert_eq!(parameter(&slack, "scope"), scopes);
    let mut allowed = Allowed::in_team("T0NEW");
    (allowed.user, allowed.without) = ("U0STEVE".into(), vec!["files:read".into()]);
    let back = setup.env.slack.allow(&slack, &allowed).expect("Slack's page");
    let begun = Instant::now();
    let after = location(&browser.open(&back).await);
    let app = setup.app().await;
    assert_eq!(after, format!("{goes_to}&tidegate_connection={}", app.connection));
    setup.mention(&app, "first question").await;
    let took = begun.elapsed();
    println!("Allow to the first answered mention: {took:?}");
    assert!(took <= FIRST_ANSWER_WITHIN, "{took:?}");

    let made = setup.connections().await.remove(0);
    assert_eq!((made.organization.as_str(), made.status.as_str()), ("acme", "active"));
    assert_eq!(made.installed_by.as_deref(), Some("U0STEVE"));
    assert_eq!(made.scopes, ["app_mentions:read", "channels:history", "chat:write"]);
    assert_eq!(made.agent, Some(agent_id()), "the app's agent, in the organization");
    assert_eq!(setup.count("select count(*) from token_rotations").await, 1);
    let log = setup.env.tidegate(&["audit-log", "--json"]).expect("entries");
    assert!(
        log.contains("connection.install") && log.contains("slack-user:T0NEW/U0STEVE"),
        "{log}"
    );
    let logs = setup.env.logs();
    for secret in [app.token.as_str(), "client-secret", &parameter(&slack, "state")] {
        assert!(!log.contains(secret) && !logs.contains(secret), "a secret is in no log");
    }
    let dump = "select string_agg(s::text, '') from install_states s";
    let dump: String = sqlx::query_scalar(dump).fetch_one(&setup.env.pool).await.expect("Postgres");
    assert!(!dump.contains(&parameter(&slack, "state")), "a state is stored as a hash");
}

/// 64 installations of one workspace at once make one connection, whose token works.
#[tokio::test]
async fn installs_team_once() {
    let mut setup = Setup::start(SMALL).await;
    setup.env.start_control().await.expect("another control API");
    let mut ready = Vec::new();
    for n in 0..64 {
        let link = setup.link("acme", json!({ "app": APP })).await;
        let mut browser = Browser::new();
        let slack = browser.begin(&link).await;
        let back = setup.env.slack.allow(&slack, &Allowed::in_team("T0SAME")).expect("a page");
        // Several control APIs share no state.
        let [first, second] = [0, 1].map(|n| setup.env.controls[n].path(""));
        let back = if n % 2 == 0 { back } else { back.replace(&first, &second) };
        ready.push((browser, back));
    }
    let ends = ready.iter_mut().map(|(browser, back)| browser.open(back));
    for end in futures_util::future::join_all(ends).await {
        assert_eq!(end.status(), StatusCode::OK, "{:?}", end.text().await);
    }
    let app = setup.app().await;
    assert_eq!(setup.count("select count(*) from token_rotations").await, 1);
    let used = "select count(*) from install_links where connection_id is not null";
    assert_eq!(setup.count(used).await, 64);
    setup.mention(&app, "after 64 installations").await;
}

/// A re-installation replaces token and scopes of the same row. Events of the previous one that
/// come late change nothing. After a removal the tokens are erased, and the data goes.
#[tokio::test]
async fn renews_and_erases_installation() {
    let mut setup = Setup::start(SERVERS).await;
    setup.env.set("TIDEGATE_UNINSTALLED_RETENTION_PERIOD", "1d");
    setup.env.start_ingest().await.expect("an ingest");
    setup.env.start_worker().await.expect("a worker");
    assert_eq!(setup.install("acme", &Allowed::in_team("T0NEW")).await.status(), StatusCode::OK);
    let first = setup.app().await;
    let before = tests::slack::unix_now() - 10;
    setup.env.slack.uninstall(APP, "T0NEW");
    assert_eq!(setup.install("acme", &Allowed::in_team("T0NEW")).await.status(), StatusCode::OK);
    let second = setup.app().await;
    assert_eq!(first.connection, second.connection, "the same row");
    assert_ne!(first.token, second.token);

    let url = setup.env.ingests[0].path("/slack/events");
    let send = async |kind: &str, at: u64| {
        let tokens = json!({ "bot": [second.bot_user] });
        let inner = json!({ "type": kind, "tokens": tokens });
        let mut webhook = Webhook::event(&setup.env.slack, &second, kind, inner);
        let mut body: Value = serde_json::from_slice(&webhook.body).expect("JSON");
        body["event_time"] = at.into();
        webhook.body = body.to_string().into_bytes();
        let answer = setup.env.slack.send(&url, SIGNING, &webhook).await.expect("an answer");
        assert_eq!(answer.status, 200);
        setup.env.wait_for_outcome(&webhook.dedup_key).await;
    };
    for late in ["tokens_revoked", "app_uninstalled"] {
        send(late, before).await;
    }
    setup.mention(&second, "still here").await;

    setup.env.slack.uninstall(APP, "T0NEW");
    send("app_uninstalled", tests::slack::unix_now() + 1).await;
    let status = "select count(*) from connections where status = 'revoked' and bot_token is null";
    assert_eq!(setup.count(status).await, 1, "the token is erased at once");
    assert_eq!(setup.count("select count(*) from token_rotations").await, 0);
    let age = "update connections set updated_at = now() - interval '2 days'";
    let mut changed = setup.env.pool.begin().await.expect("Postgres");
    for sql in ["set local session_replication_role = replica", age] {
        sqlx::query(sql).execute(&mut *changed).await.expect("aged");
    }
    changed.commit().await.expect("aged");
    eventually("the data is deleted", TIMEOUT, async || {
        (setup.count("select count(*) from connections").await == 0).then_some(())
    })
    .await;
    let kept =
        format!("select count(*) from deliveries where connection_id = '{}'", first.connection);
    eventually("the traffic is deleted", TIMEOUT, async || {
        (setup.count(&kept).await == 0).then_some(())
    })
    .await;
}

/// An organization-wide installation on Grid has the enterprise as its key.
#[tokio::test]
async fn installs_organization_on_grid() {
    let setup = Setup::start(SERVERS).await;
    let page = setup.install("acme", &Allowed::in_enterprise("E0GRID")).await;
    assert_eq!(page.status(), StatusCode::OK, "{}", setup.env.logs());
    let made = setup.connections().await.remove(0);
    let enterprise = made.enterprise.as_ref().map(|id| id.as_str());
    assert_eq!((made.team, enterprise), (None, Some("E0GRID")));
    let again = setup.install("acme", &Allowed::in_enterprise("E0GRID")).await;
    assert_eq!(again.status(), StatusCode::OK);
    assert_eq!(setup.connections().await.len(), 1);
}

/// Both client secrets are tried during a rotation, the newest first, by installations and by
/// refreshes.
#[tokio::test]
async fn overlaps_client_secrets() {
    let setup = Setup::start(SMALL).await;
    setup.apply(&[(APP, CLIENT, "second-secret")]);
    // Slack still has the first secret.
    setup.env.slack.rotate_client_secret(CLIENT, "client-secret");
    assert_eq!(setup.install("acme", &Allowed::in_team("T0NEW")).await.status(), StatusCode::OK);
    let refused = setup.env.slack.calls_of("oauth.v2.access");
    assert_eq!(refused.len(), 2, "the newest first: {refused:?}");
    let refresh = async |what: &str| {
        let before = setup.count("select generation from token_rotations").await;
        let due = "update token_rotations set refresh_at = now()";
        sqlx::query(due).execute(&setup.env.pool).await.expect("due");
        eventually(what, TIMEOUT, async || {
            let now = setup.count("select generation from token_rotations").await;
            (now > before).then_some(())
        })
        .await;
    };
    refresh("a refresh with the previous secret").await;
    setup.env.slack.rotate_client_secret(CLIENT, "second-secret");
    refresh("a refresh with the newest secret").await;
    assert_eq!(setup.install("acme", &Allowed::in_team("T0NEW")).await.status(), StatusCode::OK);
    let app = setup.app().await;
    setup.mention(&app, "with the newest token").await;
}

/// A return from Slack without a state, as after an approval, needs another click, and its code is
/// not exchanged.
#[tokio::test]
async fn requires_click_without_state() {
    let setup = Setup::start(SERVERS).await;
    let link = setup.link("acme", json!({ "app": APP })).await;
    let mut browser = Browser::new();
    let slack = browser.begin(&link).await;
    let back = setup.env.slack.allow(&slack, &Allowed::in_team("T0NEW")).expect("a page");
    let without =
        format!("{}?code={}", back.split('?').next().expect("a path"), parameter(&back, "code"));
    let page = browser.open(&without).await.text().await.expect("a page");
    assert!(page.contains("One more click") && page.contains("id=\"add-to-slack\""), "{page}");
    let page = Browser::new().open(&without).await.text().await.expect("a page");
    assert!(page.contains("One more step") && !page.contains("<form"), "{page}");
    assert!(setup.env.slack.calls_of("oauth.v2.access").is_empty(), "no exchange");
    assert!(setup.connections().await.is_empty());
    let slack = browser.begin(&link).await;
    let back = setup.env.slack.allow(&slack, &Allowed::in_team("T0NEW")).expect("a page");
    assert_eq!(browser.open(&back).await.status(), StatusCode::OK);
    assert_eq!(setup.app().await.team, "T0NEW");
}

/// Moving a connection is an audited operation of an owner of all organizations.
#[tokio::test]
async fn moves_connection_to_organization() {
    let setup = Setup::start(SERVERS).await;
    assert_eq!(setup.install("acme", &Allowed::in_team("T0NEW")).await.status(), StatusCode::OK);
    let app = setup.app().await;
    let page = setup.install("beta", &Allowed::in_team("T0NEW")).await;
    assert_eq!(page.status(), StatusCode::CONFLICT);
    let page = page.text().await.expect("a page");
    assert!(page.contains("support@helper.example") && !page.contains("acme"), "{page}");
    assert_eq!(setup.app().await.token, app.token, "nothing changed");

    let path = format!("/v1/connections/{}/move", app.connection);
    let target = json!({ "organization": "beta", "agent": agent_id() });
    let of_acme = key(&setup.env, "owner", Some("acme"));
    for (key, expected) in [(&setup.key, 403), (&of_acme, 403)] {
        assert_eq!(setup.post(key, &path, &target).await.0.as_u16(), expected);
    }
    let owner = key(&setup.env, "owner", None);
    let unknown = json!({ "organization": "beta", "agent": "nobody" });
    assert_eq!(setup.post(&owner, &path, &unknown).await.0, StatusCode::NOT_FOUND);
    let (status, moved) = setup.post(&owner, &path, &target).await;
    assert_eq!((status, &moved["organization"]), (StatusCode::OK, &json!("beta")), "{moved}");
    for org in ["acme", "beta"] {
        let args = ["audit-log", "--json", "--org", org];
        let log = setup.env.tidegate(&args).expect("entries");
        assert!(log.contains("connection.move"), "{org}: {log}");
    }
    assert_eq!(setup.install("beta", &Allowed::in_team("T0NEW")).await.status(), StatusCode::OK);
    let id = app.connection.to_string();
    setup.env.tidegate(&["connections", "move", &id, "--org", "acme"]).expect("moved back");
    assert_eq!(setup.app().await.org.as_str(), "acme");
}

/// An organization with the maximum of connections gets no more by installations. An existing one
/// can be installed again.
#[tokio::test]
async fn limits_connections_of_organization() {
    let setup = Setup::start(SERVERS).await;
    let old = Allowed::in_team("T0OLD");
    assert_eq!(setup.install("acme", &old).await.status(), StatusCode::OK);
    let mut tx = setup.env.pool.begin().await.expect("Postgres");
    for sql in [
        "set local session_replication_role = replica",
        "insert into connections (id, org_id, app_id, team_id)
         select lpad(to_hex(n), 32, '0'), 'acme', 'A08', 'T' || n from generate_series(2, 100000) n",
    ] {
        sqlx::query(sql).execute(&mut *tx).await.expect("rows");
    }
    tx.commit().await.expect("committed");
    let refused = setup.install("acme", &Allowed::in_team("T0NEW")).await;
    assert_eq!(refused.status(), StatusCode::CONFLICT);
    assert!(refused.text().await.expect("a page").contains("Too many workspaces"));
    assert_eq!(setup.install("acme", &old).await.status(), StatusCode::OK);
    assert_eq!(setup.count("select count(*) from connections").await, 100_000);
}

/// A person installs with Chromium, with and without scripts: the policy of the pages allows what
/// they need and nothing complains.
#[tokio::test]
async fn installs_in_browser() {
    let setup = Setup::start(SERVERS).await;
    for scripts in [Scripts::Off, Scripts::On] {
        let link = setup.link("acme", json!({ "app": APP })).await;
        let seen = browser::install(&link, "#allow", scripts).await.expect("a browser");
        assert_eq!(seen["start"]["title"], "Add Helper to Slack", "{seen}");
        assert!(seen["start"]["text"].as_str().expect("text").contains("The acme company"));
        assert_eq!(seen["color"], "rgb(74, 21, 75)", "the style is applied: {seen}");
        assert_eq!(seen["end"]["title"], "Connected", "{seen}");
        assert_eq!(seen["complaints"], json!([]), "{seen}");
        let cookies = seen["cookies"].as_array().expect("cookies");
        assert_eq!(cookies.len(), 2, "{seen}");
        for cookie in cookies {
            let kinds = (&cookie["secure"], &cookie["httpOnly"], &cookie["sameSite"]);
            assert_eq!(kinds, (&json!(true), &json!(true), &json!("Lax")), "{cookie}");
        }
    }
    assert_eq!(setup.app().await.team, "T0BROWSER");
    let link = setup.link("acme", json!({ "app": APP })).await;
    let seen = browser::install(&link, "#cancel", Scripts::Off).await.expect("a browser");
    assert_eq!(seen["end"]["title"], "Not connected", "{seen}");
}
