//! Sync responses: submissions of views and requests for options are answered within Slack's
//! request, or with a default.
//!
//! In most of these tests the test acts as the worker: stream, subjects and ingest are real.

use serde_json::{Value, json};
use shared::stream::STREAM;
use std::time::Duration;
use tests::{
    eventually::eventually,
    slack::{Answer, webhook::Webhook},
    test_env::{App, SMALL, Size, TIMEOUT, TestEnv},
};

const INGEST_ONLY: Size = Size { ingests: 1, workers: 0, own_postgres: false };
const SLACK_DEADLINE: Duration = Duration::from_secs(3);

fn interaction(env: &TestEnv, app: &App, kind: &str, trigger: &str) -> Webhook {
    let view = json!({
        "id": "V1", "root_view_id": "V1", "hash": "1.same", "type": "modal", "team_id": app.team,
        "blocks": [{ "type": "input", "block_id": "name" }],
    });
    let payload = json!({
        "type": kind, "team": { "id": app.team }, "user": { "id": "U1", "team_id": app.team },
        "api_app_id": app.app, "trigger_id": trigger, "view": view,
    });
    let body = form_urlencoded::Serializer::new(String::new())
        .append_pair("payload", &payload.to_string())
        .finish();
    let mut webhook = Webhook::command(&env.slack, app, "C1", "U1", "/x", "");
    webhook.body = body.into_bytes();
    webhook.what = kind.into();
    webhook
}

/// Returns the subject on which ingest waits for the answer to the newest webhook.
async fn reply_subject(env: &TestEnv) -> String {
    let js = async_nats::jetstream::new(env.client().clone());
    eventually("the webhook is stored", TIMEOUT, async || {
        let stream = js.get_stream(STREAM).await.ok()?;
        let message = stream.get_last_raw_message_by_subject("slack.in.*.*").await.ok()?;
        message.headers.get("Tidegate-Reply-To").map(ToString::to_string)
    })
    .await
}

async fn answer_as_worker(env: &TestEnv, to: &str, answer: &str) -> String {
    let reply = env
        .client()
        .request(to.to_owned(), answer.to_owned().into())
        .await
        .expect("a reply of ingest");
    String::from_utf8(reply.payload.to_vec()).expect("text")
}

async fn exchange(env: &TestEnv, app: &App, webhook: &Webhook, answer: &str) -> (Answer, String) {
    let worker = async { answer_as_worker(env, &reply_subject(env).await, answer).await };
    let (slack, result) = tokio::join!(env.send(app, webhook), worker);
    (slack.expect("an answer"), result)
}

/// An answer of the worker in time is the body of Slack's response.
#[tokio::test]
async fn relays_answer_in_time() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let errors =
        json!({ "response_action": "errors", "errors": { "name": "too short" } }).to_string();
    let (slack, result) =
        exchange(&env, &app, &interaction(&env, &app, "view_submission", "1.1.a"), &errors).await;
    assert_eq!((slack.status, slack.body, result.as_str()), (200, errors, "relayed"));
    assert_eq!(slack.headers["content-type"], "application/json");
    assert!(slack.took < Duration::from_secs(1), "{:?}", slack.took);
}

/// Without an answer a submission shows a waiting message and a menu is empty, within three
/// seconds.
#[tokio::test]
async fn uses_defaults_without_answer() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let (view, menu) = tokio::join!(
        async { env.send(&app, &interaction(&env, &app, "view_submission", "1.1.a")).await },
        async { env.send(&app, &interaction(&env, &app, "block_suggestion", "1.1.b")).await },
    );
    let (view, menu) = (view.expect("an answer"), menu.expect("an answer"));
    let body: Value = serde_json::from_str(&view.body).expect("JSON");
    assert_eq!((view.status, &body["response_action"]), (200, &json!("update")));
    assert_eq!((menu.status, menu.body.as_str()), (200, r#"{"options":[]}"#));
    assert!(
        view.took < SLACK_DEADLINE && menu.took < SLACK_DEADLINE,
        "{:?} {:?}",
        view.took,
        menu.took
    );
    assert_eq!(env.stored().await.expect("a count"), 2, "both are stored");
    let result = answer_as_worker(&env, &reply_subject(&env).await, "{}").await;
    assert_eq!(result, "late", "an answer after the deadline is not reported as relayed");
}

/// A second submission of the same view is stored as another webhook.
#[tokio::test]
async fn stores_corrected_submission() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    // The same view and the same `hash`; only the trigger is new, as in Slack.
    for trigger in ["1.1.first", "1.1.second"] {
        exchange(&env, &app, &interaction(&env, &app, "view_submission", trigger), "").await;
    }
    assert_eq!(env.stored().await.expect("a count"), 2);
}

/// A submission without an app is answered with an empty body within two seconds.
#[tokio::test]
async fn answers_submission_at_once() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let answer = env
        .send(&app, &interaction(&env, &app, "view_submission", "1.1.a"))
        .await
        .expect("an answer");
    assert_eq!((answer.status, answer.body.as_str()), (200, ""), "an empty answer closes the view");
    assert!(answer.took < Duration::from_secs(2), "{:?}", answer.took);
    assert!(env.slack.receipts().is_empty());
}

/// An answer that is late for Slack's request updates the view, once.
#[tokio::test]
async fn sends_late_answer_once() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    env.workers[0].process.freeze();
    let answer = env
        .send(&app, &interaction(&env, &app, "view_submission", "1.1.a"))
        .await
        .expect("an answer");
    assert!(answer.body.contains("Working on it"), "{answer:?}");
    env.workers[0].process.thaw();
    let update = env
        .slack
        .wait_for_receipt("the view is updated", |receipt| receipt.by == "views.update")
        .await;
    assert_eq!(update.body["view_id"], "V1");
    assert_eq!(env.slack.receipts().len(), 1);
}

fn legacy(env: &TestEnv, app: &App, kind: &str, more: Value) -> Webhook {
    let mut payload = json!({
        "type": kind, "token": "x", "callback_id": "c", "action_ts": env.slack.ts(),
        "team": { "id": app.team, "domain": "d" }, "user": { "id": "U1", "name": "steve" },
        "channel": { "id": "C1", "name": "general" }, "response_url": env.slack.response_url(),
    });
    for (name, value) in more.as_object().expect("an object") {
        payload[name] = value.clone();
    }
    tests::fixtures::webhook(kind, &json!({ "_payload": payload }))
}

fn legacy_interactions(env: &TestEnv, app: &App) -> [Webhook; 4] {
    [
        legacy(env, app, "dialog_submission", json!({ "submission": { "n": "x" }, "state": "" })),
        legacy(
            env,
            app,
            "interactive_message",
            json!({ "message_ts": "1.1", "trigger_id": "1.1.c",
            "actions": [{ "name": "n", "type": "button", "value": "v" }] }),
        ),
        legacy(
            env,
            app,
            "interactive_message",
            json!({ "name": "n", "value": "a",
            "message_ts": "1.1" }),
        ),
        legacy(env, app, "dialog_suggestion", json!({ "name": "n", "value": "a" })),
    ]
}

/// Answers to dialogs and legacy menus and buttons are relayed in Slack's response.
#[tokio::test]
async fn relays_legacy_answers() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let answers = [
        json!({ "errors": [{ "name": "n", "error": "too short" }] }),
        json!({ "text": "done" }),
        json!({ "options": [{ "text": "A", "value": "a" }] }),
        json!({ "options": [{ "label": "A", "value": "a" }] }),
    ];
    for (webhook, answer) in legacy_interactions(&env, &app).iter().zip(answers) {
        // The previous request is complete, so that the newest webhook is this one.
        let answer = answer.to_string();
        let stored = env.stored().await.expect("a count");
        let worker = async {
            eventually("the webhook is stored", TIMEOUT, async || {
                (env.stored().await.ok()? > stored).then_some(())
            })
            .await;
            answer_as_worker(&env, &reply_subject(&env).await, &answer).await
        };
        let (slack, result) = tokio::join!(env.send(&app, webhook), worker);
        let slack = slack.expect("an answer");
        assert_eq!((slack.status, slack.body, result.as_str()), (200, answer, "relayed"));
    }
}

/// Dialogs and legacy menus and buttons without an app get an empty answer within two seconds.
#[tokio::test]
async fn answers_legacy_without_app() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let empty = ["", "", r#"{"options":[]}"#, r#"{"options":[]}"#];
    for (webhook, expected) in legacy_interactions(&env, &app).iter().zip(empty) {
        let answer = env.send(&app, webhook).await.expect("an answer");
        assert_eq!((answer.status, answer.body.as_str()), (200, expected), "{}", webhook.what);
        assert!(answer.took < Duration::from_secs(2), "{:?}", answer.took);
    }
    assert!(env.slack.receipts().is_empty());
}
