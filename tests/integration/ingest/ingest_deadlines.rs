//! Answers within Slack's three seconds in every state of the stream. A rejected webhook can be
//! resent without being stored or processed twice.

use async_nats::jetstream;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use shared::stream::{DedupKey, STREAM};
use std::time::Duration;
use tests::{
    eventually::eventually,
    fixtures,
    slack::{Answer, webhook::Webhook},
    test_env::{App, SMALL, Size, TIMEOUT, TestEnv},
};

/// One ingest without a worker: stored webhooks are not processed.
const INGEST_ONLY: Size = Size { workers: 0, ..SMALL };
const SLACK_DEADLINE: Duration = Duration::from_secs(3);
/// Maximum answer time with a full stream, where another attempt is useless.
const AT_ONCE: Duration = Duration::from_secs(1);
const MIB: u64 = 1024 * 1024;

fn hello_message(env: &TestEnv, app: &App) -> Webhook {
    Webhook::message(&env.slack, app, "C1", "U1", "hello")
}

fn help_command(env: &TestEnv, app: &App) -> Webhook {
    Webhook::command(&env.slack, app, "C1", "U1", "/lobu", "help")
}

/// Returns an interaction from its fixture with a new `trigger_id`.
fn interaction(
    env: &TestEnv,
    app: &App,
    fixture: &str,
    change: impl FnOnce(&mut Value),
) -> Webhook {
    let mut fixture = fixtures::named(fixture).content;
    let trigger_id = format!("{}.9.trigger", env.slack.unique());
    let payload = &mut fixture["_payload"];
    payload["trigger_id"] = json!(trigger_id);
    change(payload);
    let body = form_urlencoded::Serializer::new(String::new())
        .append_pair("payload", &payload.to_string())
        .finish();
    Webhook {
        what: payload["type"].to_string(),
        content_type: "application/x-www-form-urlencoded",
        body: body.into_bytes(),
        dedup_key: DedupKey::new(app.connection, "action", &[trigger_id.as_bytes(), b""]),
        response_url: String::new(),
    }
}

fn without_inputs(payload: &mut Value) {
    let blocks = payload["view"]["blocks"].as_array_mut().expect("the view has blocks");
    blocks.retain(|block| block["type"] != "input");
}

fn assert_retry_later(answer: &Answer, within: Duration) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.headers["retry-after"], "1", "{answer:?}");
    assert!(answer.took < within, "{:?}", answer.took);
}

/// Checks that the user of a command gets a notice: Slack does not resend commands.
fn assert_notice(answer: &Answer, within: Duration) {
    let body: Value = serde_json::from_str(&answer.body).expect("a message");
    let text = body["text"].as_str().expect("a text");
    assert_eq!((answer.status, body["response_type"].as_str()), (200, Some("ephemeral")));
    assert!(text.contains("try again") && answer.took < within, "{answer:?}");
}

/// With a full stream each kind of webhook gets its own answer within a second. Webhooks are
/// accepted again when there is room.
#[tokio::test]
async fn answers_when_stream_is_full() {
    const SUBMISSION: &str = "view_submission";
    const SUGGESTION: &str = "block_suggestion";
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect_for_fixtures().await.expect("a connection");
    let send = async |webhook: &Webhook| env.send(&app, webhook).await.expect("an answer");
    assert_eq!(send(&hello_message(&env, &app)).await.status, 200);

    type Change = fn(&mut jetstream::stream::Config);
    let changes: [(Change, Change); 2] = [
        (|stream| stream.max_messages = 1, |stream| stream.max_messages = -1),
        (|stream| stream.max_bytes = 1, |stream| stream.max_bytes = 64 * 1024 * 1024),
    ];
    for (stored, (fill, make_room)) in (1..).zip(changes) {
        env.change_stream(fill).await.expect("the stream is changed");
        let event = hello_message(&env, &app);
        assert_retry_later(&send(&event).await, AT_ONCE);
        assert_notice(&send(&help_command(&env, &app)).await, AT_ONCE);

        let answer = send(&interaction(&env, &app, SUBMISSION, |_| ())).await;
        let body: Value = serde_json::from_str(&answer.body).expect("an action");
        assert_eq!((answer.status, &body["response_action"]), (200, &json!("errors")));
        let errors = body["errors"].as_object().expect("errors by block");
        assert_eq!(errors.keys().collect::<Vec<_>>(), ["multiline"], "the view's input block");
        assert!(answer.took < AT_ONCE, "{:?}", answer.took);
        // Without an input block for the error, a 503 makes Slack show its own error.
        assert_retry_later(
            &send(&interaction(&env, &app, SUBMISSION, without_inputs)).await,
            AT_ONCE,
        );

        // Slack shows no answer to a click or to the end of a view, so a 200 would hide the
        // failure.
        for kind in ["block_actions", "view_closed"] {
            let other =
                interaction(&env, &app, SUBMISSION, |payload| payload["type"] = kind.into());
            assert_retry_later(&send(&other).await, AT_ONCE);
        }

        for change in [|_: &mut Value| (), without_inputs] {
            let answer = send(&interaction(&env, &app, SUGGESTION, change)).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"options":[]}"#));
            assert!(answer.took < AT_ONCE, "{:?}", answer.took);
        }
        assert_eq!(
            env.stored().await.expect("a count"),
            stored,
            "a webhook was stored in a full stream"
        );

        env.change_stream(make_room).await.expect("the stream is changed");
        assert_eq!(send(&event).await.status, 200, "there is room");
        assert_eq!(env.stored().await.expect("a count"), stored + 1);
    }
}

/// Without a stream Slack gets an answer in time. A migration creates the stream, and webhooks are
/// accepted.
#[tokio::test]
async fn answers_without_stream() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    env.jetstream().delete_stream(STREAM).await.expect("the stream is deleted");
    let (event, command) = (hello_message(&env, &app), help_command(&env, &app));
    let (event_answer, command_answer) =
        tokio::join!(env.send(&app, &event), env.send(&app, &command));
    assert_retry_later(&event_answer.expect("an answer"), SLACK_DEADLINE);
    assert_notice(&command_answer.expect("an answer"), SLACK_DEADLINE);
    env.tidegate(&["migrate"]).expect("the stream is made");
    assert_eq!(env.send(&app, &event).await.expect("an answer").status, 200);
    assert_eq!(env.stored().await.expect("a count"), 1);
}

/// While NATS hangs Slack gets an answer in time. A resent webhook is processed once.
#[tokio::test]
async fn answers_while_nats_hangs() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let (event, command) = (hello_message(&env, &app), help_command(&env, &app));
    env.nats.freeze();
    let (event_answer, command_answer) =
        tokio::join!(env.send(&app, &event), env.send(&app, &command));
    assert_retry_later(&event_answer.expect("an answer"), SLACK_DEADLINE);
    assert_notice(&command_answer.expect("an answer"), SLACK_DEADLINE);
    env.nats.thaw();
    for webhook in [&event, &command] {
        eventually("the webhook is accepted when resent", TIMEOUT, async || {
            let answer = env.send(&app, webhook).await.ok()?;
            (answer.status == 200 && answer.body.is_empty()).then_some(())
        })
        .await;
        env.wait_for_outcome(&webhook.dedup_key).await;
    }
    // The last command is in the same queue behind both: once it is answered, a second answer to
    // them would have arrived.
    let last = help_command(&env, &app);
    assert_eq!(env.send(&app, &last).await.expect("an answer").status, 200);
    env.slack
        .wait_for_receipt("the reply to the last command", |receipt| {
            last.response_url.ends_with(&receipt.to)
        })
        .await;
    let receipts = env.slack.receipts();
    let answered = receipts.iter().filter(|receipt| command.response_url.ends_with(&receipt.to));
    assert_eq!(answered.count(), 1);
    assert_eq!(env.stored().await.expect("a count"), 3, "attempts of a webhook are stored once");
}

/// Without NATS 2,000 webhooks get a 503 in time and take a bounded memory. Resent, each is stored
/// once.
#[tokio::test]
async fn bounds_memory_without_nats() {
    const WEBHOOKS: usize = 2_000;
    const AT_ONCE: usize = 200;
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let ingest = &env.ingests[0].process;
    let text = "x".repeat(20 * 1024);
    let webhooks: Vec<Webhook> =
        (0..WEBHOOKS).map(|_| Webhook::message(&env.slack, &app, "C1", "U1", &text)).collect();
    let before = ingest.resident().expect("it runs");
    env.nats.kill();
    eventually("ingest detects the outage of NATS", TIMEOUT, async || {
        (env.ingests[0].metric("tidegate_ingest_nats_connected").await.ok()? == 0.0).then_some(())
    })
    .await;

    let mut highest = before;
    let mut answers =
        stream::iter(&webhooks).map(|webhook| env.send(&app, webhook)).buffer_unordered(AT_ONCE);
    while let Some(answer) = answers.next().await {
        assert_eq!(answer.expect("an answer").status, 503);
        highest = highest.max(ingest.resident().expect("it runs"));
    }
    // Measured by ingest: with this concurrency the client itself is late.
    let answered = async |within: &str| {
        let route = "http_route=\"/api/v1/webhooks/{connection}\",status_class=\"5xx\"";
        let line = format!(
            "tidegate_http_server_request_duration_seconds_bucket{{le=\"{within}\",{route}}}"
        );
        env.ingests[0].metric(&line).await.expect("metrics")
    };
    assert_eq!((answered("3.0").await, answered("+Inf").await), (WEBHOOKS as f64, WEBHOOKS as f64));
    let grown = (highest - before) / 1024;
    assert!(highest - before < 40 * MIB, "ingest grew by {grown} KiB with {WEBHOOKS} webhooks");

    env.nats.restart().await.expect("NATS comes back");
    env.ingests[0].wait_until_ready().await.expect("ingest finds it");
    let count = eventually("the stream is back", TIMEOUT, async || env.stored().await.ok()).await;
    assert_eq!(count, 0, "a rejected webhook was kept in memory and stored");
    let mut resent = stream::iter(&webhooks)
        .map(async |webhook| {
            eventually("the webhook is accepted when resent", TIMEOUT, async || {
                let answer = env.send(&app, webhook).await.ok()?;
                (answer.status == 200).then_some(())
            })
            .await;
        })
        .buffer_unordered(64);
    while resent.next().await.is_some() {}
    assert_eq!(
        env.stored().await.expect("a count"),
        WEBHOOKS as u64,
        "each webhook is stored once"
    );
}
