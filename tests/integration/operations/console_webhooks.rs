//! The console's pages of single webhooks: search, timeline, redrive, and the body with its audit.

use reqwest::StatusCode;
use serde_json::Value;
use shared::domain::Surface;
use sqlx::AssertSqlSafe;
use std::time::Duration;
use tests::{
    browser::{self, Scripts},
    console::Browser,
    eventually::eventually,
    install::key,
    recording::Recording,
    slack::webhook::Webhook,
    test_env::{App, SMALL, TIMEOUT, TestEnv, agent_id},
};

/// Maximum time of three attempts with their backoff.
const DEAD_WITHIN: Duration = Duration::from_secs(60);

async fn start() -> (TestEnv, App) {
    let mut env = TestEnv::start(SMALL).await.expect("a test environment");
    env.start_control().await.expect("a control API");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    (env, app)
}

async fn send(env: &TestEnv, app: &App, text: &str) -> (Webhook, String) {
    let ts = env.slack.ts();
    let webhook = Webhook::message_event(&env.slack, app, "message", "D1", "U0STEVE", text, &ts);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    (webhook, ts)
}

fn event_id(webhook: &Webhook) -> String {
    webhook.dedup_key.as_str().rsplit(':').next().expect("an id").to_owned()
}

/// A webhook is found by event id, permalink, channel and time, person or agent, and its page shows
/// each step or why it was ignored.
#[tokio::test]
async fn finds_webhook_with_timeline() {
    let (env, app) = start().await;
    let (webhook, ts) = send(&env, &app, "where is it").await;
    env.slack.wait_for_receipt("the answer", |r| r.text().contains("where is it")).await;
    assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "completed");
    let mut browser = Browser::log_in(&env, "viewer", Some(app.org.as_str())).await;
    let logged = "select count(*) from outbox_log where dedup_key = $1";
    eventually("the call is recorded", TIMEOUT, async || {
        let query = sqlx::query_scalar::<_, i64>(logged).bind(webhook.dedup_key.as_str());
        (query.fetch_one(&env.pool).await.ok()? == 1).then_some(())
    })
    .await;
    let permalink =
        format!("https%3A%2F%2Facme.slack.com%2Farchives%2FD1%2Fp{}", ts.replace('.', ""));
    let event = event_id(&webhook);
    for reference in [event.as_str(), &permalink, &format!("D1%2F{ts}")] {
        let page = browser.open(&format!("/webhooks?q={reference}")).await;
        assert_eq!(page.status, StatusCode::OK, "{reference}: {}", page.text);
        for step in
            ["Slack&#39;s request to ack", "Decision", "Waiting", "Attempts", "Call to Slack"]
        {
            assert!(page.text.contains(&format!(">{step}<")), "{reference}: {step}: {}", page.text);
        }
        assert!(page.text.contains("The delivery ended as completed."), "{}", page.text);
        assert!(page.text.contains("chat.postMessage") && !page.text.contains("where is it"));
    }
    let agent = format!("{}/{}", app.org, agent_id());
    for filter in [
        "user=U0STEVE".to_owned(),
        format!("agent={agent}"),
        format!("connection={}", app.connection),
    ] {
        let page = browser.get(&format!("/webhooks?{filter}")).await;
        assert!(!page.links(&event).is_empty(), "{filter}: {}", page.text);
    }
    let page = browser.get("/webhooks?error=poison").await;
    assert!(page.links(&event).is_empty(), "it has no error");

    // A webhook that was ignored shows why.
    let dm_only = env.connect_as(|new| {
        new.agent = Some(agent_id());
        new.settings.surfaces = vec![Surface::Dm];
    });
    let dm_only = dm_only.await.expect("a connection");
    let (ts, text) = (env.slack.ts(), format!("<@{}> hello", dm_only.bot_user));
    let ignored =
        Webhook::message_event(&env.slack, &dm_only, "app_mention", "C1", "U0STEVE", &text, &ts);
    assert_eq!(env.send(&dm_only, &ignored).await.expect("an answer").status, 200);
    env.wait_for_outcome(&ignored.dedup_key).await;
    let mut browser = Browser::log_in(&env, "viewer", None).await;
    let page = browser.open(&format!("/webhooks?q={}", event_id(&ignored))).await;
    assert!(page.text.contains("Ignored: "), "{}", page.text);
}

/// A dead letter is found by its error and redriven, with an entry in the audit log.
#[tokio::test]
async fn redrives_from_page() {
    let (env, app) = start().await;
    let (webhook, _) = send(&env, &app, "poison").await;
    eventually("the delivery is a dead letter", DEAD_WITHIN, async || {
        env.dead_letters().await.ok()?.pop()
    })
    .await;
    let mut browser = Browser::log_in(&env, "operator", Some(app.org.as_str())).await;
    let overview = browser.get("/").await;
    assert!(overview.text.contains("Tidegate gave up on 1 webhooks"), "{}", overview.text);
    let found = browser.get("/webhooks?error=dead_letter").await;
    let page = browser.get(&found.link(&event_id(&webhook))).await;
    assert!(page.text.contains("Tidegate gave up: "), "{}", page.text);
    let confirm = browser.get(&page.link("Redrive")).await;
    assert!(confirm.text.contains("processed again"), "{}", confirm.text);
    let page = browser.submit(&confirm.form("/actions/redrive")).await;
    assert!(page.text.contains("1 dead letters redriven."), "{}", page.text);
    let asked = || env.agent.requests().iter().filter(|a| a.question["text"] == "poison").count();
    eventually("the agent is asked again", TIMEOUT, async || (asked() > 3).then_some(())).await;
    let log = env.tidegate(&["audit-log", "--json", "--kind", "dead_letters"]).expect("an entry");
    assert!(log.contains("dead_letters.redrive") && log.contains("api-key:"), "{log}");
}

/// A body is hidden until an operator reveals it, with an entry in the audit log before. The
/// download is a recording. A deployment can switch it off.
#[tokio::test]
async fn reveals_body_with_audit() {
    let (mut env, app) = start().await;
    env.agent.set_failing(true);
    let (webhook, _) = send(&env, &app, "a secret of a person").await;
    let open = "select count(*) from deliveries";
    eventually("the delivery is enqueued", TIMEOUT, async || {
        (sqlx::query_scalar::<_, i64>(open).fetch_one(&env.pool).await.ok()? == 1).then_some(())
    })
    .await;
    let audits = async |env: &TestEnv| -> i64 {
        let sql =
            "select count(*) from audit_log where action = 'webhook.reveal' and object_id = $1
                      and org_id = $2";
        let query = sqlx::query_scalar(AssertSqlSafe(sql)).bind(webhook.dedup_key.as_str());
        query.bind(app.org.as_str()).fetch_one(&env.pool).await.expect("a count")
    };
    let path = format!("/webhooks/{}", webhook.dedup_key.as_str().replace(':', "%3A"));
    let (reveal, download) = (format!("{path}/reveal"), format!("{path}/download"));
    let mut operator = Browser::log_in(&env, "operator", Some(app.org.as_str())).await;
    let page = operator.get(&path).await;
    assert!(!page.text.contains("a secret of a person"), "{}", page.text);
    assert_eq!(audits(&env).await, 0, "a page is no reveal");
    let revealed = operator.send(&page.form(&reveal)).await;
    assert!(revealed.text.contains("a secret of a person"), "{}", revealed.text);
    assert_eq!(audits(&env).await, 1);
    let file = operator.send(&page.form(&download)).await;
    assert_eq!(audits(&env).await, 2);
    let file = env.write("webhook.jsonl", &file.text).expect("written");
    let recording = Recording::read(&file).expect("a recording");
    let [message] = &recording.messages[..] else { panic!("{recording:?}") };
    assert_eq!((message.key(), &message.body), (webhook.dedup_key.as_str(), &webhook.body));

    let mut viewer = Browser::log_in(&env, "viewer", None).await;
    let page = viewer.get(&path).await;
    assert!(page.try_form(&reveal).is_none() && page.text.contains("must be operator"));
    let mut form = operator.get(&path).await.form(&reveal);
    form.fields = viewer.get("/").await.form("/logout").fields;
    assert_eq!(viewer.send(&form).await.status, StatusCode::FORBIDDEN);

    env.set("TIDEGATE_CONSOLE_REVEAL", "false");
    env.controls.clear();
    env.start_control().await.expect("a control API");
    let mut operator = Browser::log_in(&env, "operator", None).await;
    let page = operator.get(&path).await;
    assert!(
        page.try_form(&reveal).is_none() && page.text.contains("disabled in this deployment"),
        "{}",
        page.text
    );
    form.fields = operator.get("/").await.form("/logout").fields;
    let refused = operator.send(&form).await;
    assert_eq!(refused.status, StatusCode::FORBIDDEN);
    assert!(!refused.text.contains("a secret of a person"));
    assert_eq!(audits(&env).await, 2, "nothing was revealed");
}

/// The console works in Chromium with and without scripts, without violations of its policy, and
/// fits a phone.
#[tokio::test]
async fn works_in_browser() {
    let (env, app) = start().await;
    let other = env.connect().await.expect("a connection");
    let (base, org) = (env.controls[0].console(""), Some(app.org.as_str()));
    let own = key(&env, "operator", org);
    let foreign = key(&env, "owner", Some(other.org.as_str()));
    for (scripts, n) in [(Scripts::Off, 1), (Scripts::On, 2)] {
        env.tidegate(&["connections", "enable", &app.connection.to_string()]).expect("enabled");
        let (webhook, _) = send(&env, &app, &format!("poison {n}")).await;
        let event = event_id(&webhook);
        eventually("the delivery is a dead letter", DEAD_WITHIN, async || {
            let dead = env.dead_letters().await.ok()?;
            dead.iter().any(|one| one.event_id.as_deref() == Some(&event)).then_some(())
        })
        .await;
        let seen = browser::console(&base, &own, &foreign, &event, scripts).await;
        let seen = seen.expect("a browser");
        let page = |name: &str| seen["pages"][name].as_str().expect("a text").to_owned();
        assert!(page("overview").contains("Tidegate gave up on"), "{seen}");
        assert!(page("webhook").contains("Tidegate gave up: "), "{seen}");
        assert!(!page("webhook").contains(&format!("poison {n}")), "{seen}");
        assert!(seen["bars"].as_i64().expect("a number") >= 4, "{seen}");
        assert!(page("revealed").contains(&format!("poison {n}")), "{seen}");
        assert_eq!(page("redriven"), "1 dead letters redriven.");
        assert_eq!(page("stopped"), "1 connections disabled.");
        assert!(page("foreign").contains("No webhook with this reference"), "{seen}");
        assert_eq!(seen["phone"]["width"], 360, "{seen}");
        assert_eq!(seen["phone"]["back"], "rgb(26, 29, 33)", "{seen}");
        let complaints = seen["complaints"].as_array().expect("texts");
        let unexpected = |text: &&Value| !text.to_string().contains("404");
        assert!(!complaints.iter().any(|text| unexpected(&text)), "{seen}");
    }
    let sql = "select count(*) from audit_log where action = 'webhook.reveal'";
    let reveals: i64 = sqlx::query_scalar(sql).fetch_one(&env.pool).await.expect("a count");
    assert_eq!(reveals, 2);
}
