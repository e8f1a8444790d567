//! A view's submission and a menu's options are answered in Slack's own request, or Slack is told what to show meanwhile.
//!
//! In most of these tests we are the worker: the stream, the subjects and ingest are the real ones.

use serde_json::{Value, json};
use shared::stream::STREAM;
use std::time::Duration;
use tests::{
    slack::{Answer, webhook::Webhook},
    until::until,
    world::{App, SMALL, SOON, Size, World},
};

const INGEST_ONLY: Size = Size { ingests: 1, workers: 0, own_postgres: false };
const SLACK_DEADLINE: Duration = Duration::from_secs(3);

fn interaction(world: &World, app: &App, kind: &str, trigger: &str) -> Webhook {
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
    let mut webhook = Webhook::command(&world.slack, app, "C1", "U1", "/x", "");
    webhook.body = body.into_bytes();
    webhook.what = kind.into();
    webhook
}

/// Where ingest waits for the answer to the newest webhook.
async fn reply_to(world: &World) -> String {
    let js = async_nats::jetstream::new(world.client().clone());
    until("the webhook is stored", SOON, async || {
        let stream = js.get_stream(STREAM).await.ok()?;
        let message = stream.get_last_raw_message_by_subject("slack.in.*.*").await.ok()?;
        message.headers.get("Tidegate-Reply-To").map(ToString::to_string)
    })
    .await
}

async fn answer_as_worker(world: &World, to: &str, answer: &str) -> String {
    let said = world
        .client()
        .request(to.to_owned(), answer.to_owned().into())
        .await
        .expect("ingest says something");
    String::from_utf8(said.payload.to_vec()).expect("text")
}

async fn exchange(world: &World, app: &App, webhook: &Webhook, answer: &str) -> (Answer, String) {
    let worker = async { answer_as_worker(world, &reply_to(world).await, answer).await };
    let (slack, word) = tokio::join!(world.send(app, webhook), worker);
    (slack.expect("an answer"), word)
}

#[tokio::test]
async fn an_answer_sent_in_time_goes_into_slacks_own_request() {
    let world = World::start(INGEST_ONLY).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let errors =
        json!({ "response_action": "errors", "errors": { "name": "too short" } }).to_string();
    let (slack, word) =
        exchange(&world, &app, &interaction(&world, &app, "view_submission", "1.1.a"), &errors)
            .await;
    assert_eq!((slack.status, slack.body, word.as_str()), (200, errors, "relayed"));
    assert_eq!(slack.headers["content-type"], "application/json");
    assert!(slack.took < Duration::from_secs(1), "{:?}", slack.took);
}

#[tokio::test]
async fn without_an_answer_a_submission_shows_that_it_is_worked_on_and_a_menu_is_empty() {
    let world = World::start(INGEST_ONLY).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let (view, menu) = tokio::join!(
        async { world.send(&app, &interaction(&world, &app, "view_submission", "1.1.a")).await },
        async { world.send(&app, &interaction(&world, &app, "block_suggestion", "1.1.b")).await },
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
    assert_eq!(world.stored().await.expect("a count"), 2, "both are stored all the same");
    let word = answer_as_worker(&world, &reply_to(&world).await, "{}").await;
    assert_eq!(word, "late", "what nobody waits for any more is not called relayed");
}

#[tokio::test]
async fn a_submission_corrected_and_sent_again_is_a_new_webhook() {
    let world = World::start(INGEST_ONLY).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    // The same view and the same `hash`; only the trigger is new, as Slack has it.
    for trigger in ["1.1.first", "1.1.second"] {
        exchange(&world, &app, &interaction(&world, &app, "view_submission", trigger), "").await;
    }
    assert_eq!(world.stored().await.expect("a count"), 2);
}

#[tokio::test]
async fn a_worker_answers_a_submission_at_once() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let answer = world
        .send(&app, &interaction(&world, &app, "view_submission", "1.1.a"))
        .await
        .expect("an answer");
    assert_eq!((answer.status, answer.body.as_str()), (200, ""), "an empty answer closes the view");
    assert!(answer.took < Duration::from_secs(2), "{:?}", answer.took);
    assert!(world.slack.receipts().is_empty());
}

#[tokio::test]
async fn a_worker_that_is_late_says_it_another_way_once() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    world.workers[0].process.freeze();
    let answer = world
        .send(&app, &interaction(&world, &app, "view_submission", "1.1.a"))
        .await
        .expect("an answer");
    assert!(answer.body.contains("Working on it"), "{answer:?}");
    world.workers[0].process.thaw();
    let said =
        world.slack.told("the view is updated", |receipt| receipt.by == "views.update").await;
    assert_eq!(said.body["view_id"], "V1");
    assert_eq!(world.slack.receipts().len(), 1);
}
