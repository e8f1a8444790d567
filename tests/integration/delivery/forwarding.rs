//! Mode `forward`: signing secrets, apps of other organizations, and answers of apps.

use axum::{Router, extract::State, http::HeaderMap};
use bytes::Bytes;
use serde_json::{Value, json};
use shared::{
    domain::{AgentMode, OrgId, Platform, Surface},
    secrets::Secret,
    store::{NewAgent, NewConnection, NewLinkCode},
};
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};
use tests::{
    eventually::eventually,
    slack::{Receipt, sign, webhook::Webhook},
    test_env::{App, SMALL, TIMEOUT, TestEnv, actor, agent_id, new_agent},
};
use tokio::net::TcpListener;

const SECRET: &str = "the app's own secret";
/// Time after which Slack accepts no answer in the response to its request.
const LATE: Duration = Duration::from_millis(3_050);

/// App that gives every webhook the same answer after a delay.
#[derive(Clone)]
struct Stub {
    url: String,
    asked: Arc<Mutex<Vec<(HeaderMap, Bytes)>>>,
    status: u16,
    body: String,
    after: Duration,
}

impl Stub {
    /// Starts an app and makes it the sample agent of an organization.
    async fn start(env: &TestEnv, org: &OrgId, status: u16, body: &str, after: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/", listener.local_addr().expect("an address"));
        let (asked, body) = (Arc::default(), body.to_owned());
        let stub = Self { url: url.clone(), asked, status, body, after };
        let router = Router::new().fallback(answer).with_state(stub.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        put(env, org, url, false).await;
        stub
    }

    fn requests(&self) -> Vec<(HeaderMap, Bytes)> {
        self.asked.lock().expect("no panic").clone()
    }
}

async fn answer(
    State(stub): State<Stub>,
    headers: HeaderMap,
    body: Bytes,
) -> (axum::http::StatusCode, String) {
    stub.asked.lock().expect("no panic").push((headers, body));
    tokio::time::sleep(stub.after).await;
    (axum::http::StatusCode::from_u16(stub.status).expect("a status"), stub.body)
}

fn forward_agent(org: &OrgId, url: String) -> NewAgent {
    NewAgent {
        mode: AgentMode::Forward,
        secret: Secret::new(SECRET.into()).expect("not empty"),
        ..new_agent(org, agent_id(), url).expect("an agent")
    }
}

async fn put(env: &TestEnv, org: &OrgId, url: String, signs_as_slack: bool) {
    let agent = NewAgent { signs_as_slack, ..forward_agent(org, url) };
    env.store.put_agent(&agent).await.expect("Postgres");
}

fn answered(new: &mut NewConnection) {
    new.agent = Some(agent_id());
}

fn interaction(env: &TestEnv, app: &App, more: Value) -> Webhook {
    let mut webhook = Webhook::command(&env.slack, app, "C1", "U1", "/x", "");
    let mut payload = json!({
        "team": { "id": app.team, "domain": "example" }, "user": { "id": "U1", "team_id": app.team },
        "api_app_id": app.app, "token": "legacy-token", "trigger_id": env.slack.trigger_id(),
        "response_url": webhook.response_url,
    });
    let fields = payload.as_object_mut().expect("an object");
    fields.extend(more.as_object().expect("an object").clone());
    webhook.body = form_urlencoded::Serializer::new(String::new())
        .append_pair("payload", &payload.to_string())
        .finish()
        .into_bytes();
    webhook
}

/// Forwarded webhooks are signed with the agent's secret unless `signs_as_slack` is set: the
/// connection's secret could forge its webhooks.
#[tokio::test]
async fn signs_with_secret_of_agent() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(answered).await.expect("a connection");
    for (n, (signs_as_slack, secret)) in
        [(false, SECRET), (true, app.secret.as_str())].into_iter().enumerate()
    {
        put(&env, &app.org, env.agent.url(), signs_as_slack).await;
        tokio::time::sleep(Duration::from_millis(1_200)).await; // workers read an agent once a second
        let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
        env.send(&app, &webhook).await.expect("an answer");
        let asked = eventually("the webhook is forwarded", TIMEOUT, async || {
            env.agent.requests().get(n).cloned()
        });
        let asked = asked.await;
        let header = |name: &str| asked.headers[name].to_str().expect("text").to_owned();
        let signature = sign(secret, &header("x-slack-request-timestamp"), &asked.body);
        assert_eq!(header("x-slack-signature"), signature, "signs_as_slack = {signs_as_slack}");
    }
}

/// An app of another organization gets webhooks only while the setting `foreign_apps` is on, signed
/// with its own secret.
#[tokio::test]
async fn refuses_apps_of_others() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let preview = env.connect_as(|new| new.preview_mode = true).await.expect("a preview");
    let theirs = env.connect().await.expect("another organization");
    put(&env, &theirs.org, env.agent.url(), true).await;
    let claim = NewLinkCode {
        org: theirs.org.clone(),
        agent: agent_id(),
        platform: Platform::Slack,
        surfaces: vec![Surface::Channel],
        connection: None,
        ttl: Duration::from_secs(900),
    };
    let code = env.store.create_link_code(&actor(), &claim).await.expect("a code").reveal();
    let link = async || {
        let text = format!("link {code}");
        let webhook = Webhook::command(&env.slack, &preview, "C1", "U1", "/lobu", &text);
        env.send(&preview, &webhook).await.expect("an answer");
        let reply = env
            .slack
            .wait_for_receipt("the answer", |r| webhook.response_url.ends_with(&r.to))
            .await;
        reply.text().to_owned()
    };
    let set = async |allowed: bool| {
        sqlx::query(
            "update connections set settings = jsonb_set(settings, '{foreign_apps}', to_jsonb($1))
              where id = $2",
        )
        .bind(allowed)
        .bind(preview.connection.to_string())
        .execute(&env.pool)
        .await
        .expect("Postgres");
    };
    let refused = link().await;
    assert!(refused.contains("an app of another organization"), "{refused}");
    set(true).await;
    assert!(link().await.starts_with("Linked."), "the code was not used up");
    // The setting also applies when a webhook is decided, and the connection's secret is never
    // used.
    let hello = async || {
        let webhook = Webhook::message(&env.slack, &preview, "C1", "U1", "hello");
        env.send(&preview, &webhook).await.expect("an answer");
        env.wait_for_outcome(&webhook.dedup_key).await.outcome
    };
    assert_eq!(hello().await, "completed");
    let asked = env.agent.requests().pop().expect("it was forwarded");
    let header = |name: &str| asked.headers[name].to_str().expect("text").to_owned();
    let signature = sign(SECRET, &header("x-slack-request-timestamp"), &asked.body);
    assert_eq!(header("x-slack-signature"), signature);
    set(false).await;
    assert_eq!(hello().await, "ignored");
}

/// A body with a number out of range and deep nesting is forwarded byte for byte.
#[tokio::test]
async fn forwards_odd_values_unchanged() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(answered).await.expect("a connection");
    put(&env, &app.org, env.agent.url(), false).await;
    let mut webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    let deep = format!("{}1e999{}", "[".repeat(500), "]".repeat(500));
    let body = String::from_utf8(webhook.body).expect("text");
    let body = body.replacen(r#""channel":"C1""#, &format!(r#""channel":"C1","blocks":{deep}"#), 1);
    webhook.body = body.into_bytes();
    env.send(&app, &webhook).await.expect("an answer");
    assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "completed");
    assert_eq!(env.agent.requests().pop().expect("it was forwarded").body, webhook.body);
}

/// An app whose answer is no JSON or too long is called once, and the person gets a reply.
#[tokio::test]
async fn calls_app_once_for_bad_answer() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(answered).await.expect("a connection");
    let text = Stub::start(&env, &app.org, 200, "ok", Duration::ZERO).await;
    let view = json!({ "id": "V1", "type": "modal", "team_id": app.team, "blocks": [] });
    let submission = json!({ "type": "view_submission", "view": view });
    let submission = interaction(&env, &app, submission);
    let closed = env.send(&app, &submission).await.expect("an answer");
    assert_eq!((closed.status, closed.body.as_str()), (200, ""), "the view closes");
    assert_eq!(text.requests().len(), 1);

    let long = "x".repeat(300 * 1024);
    let long = Stub::start(&env, &app.org, 200, &long, Duration::ZERO).await;
    tokio::time::sleep(Duration::from_millis(1_200)).await; // workers read an agent once a second
    for command in ["/long", "/again"] {
        let webhook = Webhook::command(&env.slack, &app, "C1", "U1", command, "");
        env.send(&app, &webhook).await.expect("an answer");
        let reply =
            env.slack.wait_for_receipt("a notice", |r| webhook.response_url.ends_with(&r.to)).await;
        assert!(reply.text().contains("its answer can't be shown"), "{reply:?}");
    }
    assert_eq!(long.requests().len(), 2, "each command reaches the app once");
}

/// A submission that becomes a dead letter, within Slack's request or after it, shows the failure
/// in its view.
#[tokio::test]
async fn shows_failure_in_submitted_view() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let submit = async |app: &App, id: &str| {
        let view = json!({ "id": id, "type": "modal", "team_id": app.team, "blocks": [] });
        let webhook = json!({ "type": "view_submission", "view": view });
        env.send(app, &interaction(&env, app, webhook)).await.expect("an answer").body
    };
    let is_failure = |shown: &str| shown.contains("Ask an administrator about `");
    let updated = async |id: &str| {
        let is_update = |r: &Receipt| r.by == "views.update" && r.body["view_id"] == id;
        env.slack.wait_for_receipt("the view is updated", is_update).await.body.to_string()
    };

    let app = env.connect_as(answered).await.expect("a connection");
    let away = Stub::start(&env, &app.org, 403, "", Duration::ZERO).await;
    let retry_for = Some(Duration::from_secs(3)); // longer than Slack's request is open
    let agent = NewAgent { retry_for, ..forward_agent(&app.org, away.url.clone()) };
    env.store.put_agent(&agent).await.expect("Postgres");
    let answer = submit(&app, "V1").await;
    assert!(answer.contains("Working on it"), "{answer}");
    let shown = updated("V1").await;
    assert!(is_failure(&shown), "{shown}");

    let app = env.connect_as(answered).await.expect("a connection");
    let refusal = r#"{"error":"no such form"}"#;
    Stub::start(&env, &app.org, 422, refusal, Duration::ZERO).await;
    let answer = submit(&app, "V2").await;
    assert!(is_failure(&answer), "it is given up while Slack's request is open: {answer}");
    let updates = env.slack.calls_of("views.update");
    assert_eq!(updates.len(), 1, "the view is updated once: {updates:?}");
}

/// A 404 of Bolt after 3 s is reported as a late acknowledgement, not as a missing listener, and
/// not retried.
#[tokio::test]
async fn reports_late_acknowledgement() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(answered).await.expect("a connection");
    let unhandled = r#"{"error":"unhandled request"}"#;
    let late = Stub::start(&env, &app.org, 404, unhandled, LATE).await;
    let slow = Webhook::command(&env.slack, &app, "C1", "U1", "/slow", "");
    env.send(&app, &slow).await.expect("an answer");
    assert_eq!(env.wait_for_outcome(&slow.dedup_key).await.outcome, "completed");
    let text = "The app did not acknowledge `/slow` in time.";
    env.slack.wait_for_receipt("a notice", |receipt| receipt.text() == text).await;
    assert_eq!((late.requests().len(), env.slack.receipts().len()), (1, 1));
}

/// The answer to a click in a legacy message is in Slack's response, or replaces the message if it
/// is late.
#[tokio::test]
async fn relays_answer_to_legacy_message() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let click = async |after: Duration| {
        let app = env.connect_as(answered).await.expect("a connection");
        let approved = json!({ "text": "approved" }).to_string();
        Stub::start(&env, &app.org, 200, &approved, after).await;
        let click = json!({ "type": "interactive_message", "callback_id": "c", "message_ts": "1.1",
            "action_ts": "2.2", "attachment_id": "1", "channel": { "id": "C1", "name": "general" },
            "actions": [{ "name": "approve", "type": "button", "value": "1" }] });
        let click = interaction(&env, &app, click);
        let answer = env.send(&app, &click).await.expect("an answer");
        (answer, click.response_url)
    };
    let (answer, _) = click(Duration::ZERO).await;
    assert!(answer.body.contains("approved"), "{answer:?}");

    let (answer, response_url) = click(LATE).await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    let reply = env.slack.wait_for_receipt("the answer", |r| response_url.ends_with(&r.to)).await;
    assert_eq!((reply.text(), &reply.body["replace_original"]), ("approved", &json!(true)));
    assert_eq!(env.slack.receipts().len(), 1, "an answer is relayed once");
}
