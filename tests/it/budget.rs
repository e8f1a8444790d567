//! Slack waits three seconds. Whatever becomes of the stream, it has an answer by then; and a webhook that was answered
//! with a no may be sent again without being stored or handled twice.

use async_nats::jetstream;
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use shared::{codec::envelope::DedupeKey, stream::STREAM};
use std::time::Duration;
use tests::{
    slack::{Answer, webhook::Webhook},
    until::until,
    world::{App, SMALL, SOON, Size, World},
};

/// Nobody here handles what is stored.
const DOOR: Size = Size { workers: 0, ..SMALL };
const SLACKS_DEADLINE: Duration = Duration::from_secs(3);
/// When there is no room, trying again is of no use.
const AT_ONCE: Duration = Duration::from_secs(1);
const MIB: u64 = 1024 * 1024;

fn hello(world: &World, app: &App) -> Webhook {
    Webhook::message(&world.slack, app, "C1", "U1", "hello")
}

fn help(world: &World, app: &App) -> Webhook {
    Webhook::command(&world.slack, app, "C1", "U1", "/lobu", "help")
}

/// An interaction from its fixture, with a `trigger_id` of its own.
fn interaction(
    world: &World,
    app: &App,
    fixture: &str,
    change: impl FnOnce(&mut Value),
) -> Webhook {
    let mut fixture: Value = serde_json::from_str(fixture).expect("a fixture is JSON");
    let trigger_id = format!("{}.9.trigger", world.slack.unique());
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
        dedupe: DedupeKey::new(app.connection, "action", &[trigger_id.as_bytes(), b""]),
        response_url: String::new(),
    }
}

fn without_inputs(payload: &mut Value) {
    let blocks = payload["view"]["blocks"].as_array_mut().expect("the view has blocks");
    blocks.retain(|block| block["type"] != "input");
}

fn is_retry_later(answer: &Answer, within: Duration) {
    assert_eq!(answer.status, 503, "{answer:?}");
    assert_eq!(answer.headers["retry-after"], "1", "{answer:?}");
    assert!(answer.took < within, "{:?}", answer.took);
}

/// Nobody sends a command again, so its user is told.
fn tells_the_user(answer: &Answer, within: Duration) {
    let said: Value = serde_json::from_str(&answer.body).expect("a message");
    let text = said["text"].as_str().expect("a text");
    assert_eq!((answer.status, said["response_type"].as_str()), (200, Some("ephemeral")));
    assert!(text.contains("try again") && answer.took < within, "{answer:?}");
}

#[tokio::test]
async fn a_full_stream_is_told_at_once_in_the_words_of_each_kind_and_room_is_noticed() {
    const SUBMISSION: &str = include_str!("../fixtures/slack/view_submission.json");
    const SUGGESTION: &str = include_str!("../fixtures/slack/block_suggestion.json");
    let world = World::start(DOOR).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let send = async |webhook: &Webhook| world.send(&app, webhook).await.expect("an answer");
    assert_eq!(send(&hello(&world, &app)).await.status, 200);

    type Change = fn(&mut jetstream::stream::Config);
    let changes: [(Change, Change); 2] = [
        (|stream| stream.max_messages = 1, |stream| stream.max_messages = -1),
        (|stream| stream.max_bytes = 1, |stream| stream.max_bytes = 64 * 1024 * 1024),
    ];
    for (stored, (fill, make_room)) in (1..).zip(changes) {
        world.change_stream(fill).await.expect("the stream is changed");
        let event = hello(&world, &app);
        is_retry_later(&send(&event).await, AT_ONCE);
        tells_the_user(&send(&help(&world, &app)).await, AT_ONCE);

        let answer = send(&interaction(&world, &app, SUBMISSION, |_| ())).await;
        let said: Value = serde_json::from_str(&answer.body).expect("an action");
        assert_eq!((answer.status, &said["response_action"]), (200, &json!("errors")));
        let errors = said["errors"].as_object().expect("errors by block");
        assert_eq!(errors.keys().collect::<Vec<_>>(), ["multiline"], "the view's input block");
        assert!(answer.took < AT_ONCE, "{:?}", answer.took);
        // Without a block to show the error at, a 503 makes Slack show one of its own.
        is_retry_later(
            &send(&interaction(&world, &app, SUBMISSION, without_inputs)).await,
            AT_ONCE,
        );

        // Nothing in the answer to a click, or to a view's end, reaches its user: a 200 would be a lie.
        for kind in ["block_actions", "view_closed"] {
            let other =
                interaction(&world, &app, SUBMISSION, |payload| payload["type"] = kind.into());
            is_retry_later(&send(&other).await, AT_ONCE);
        }

        for change in [|_: &mut Value| (), without_inputs] {
            let answer = send(&interaction(&world, &app, SUGGESTION, change)).await;
            assert_eq!((answer.status, answer.body.as_str()), (200, r#"{"options":[]}"#));
            assert!(answer.took < AT_ONCE, "{:?}", answer.took);
        }
        assert_eq!(world.stored().await.expect("a count"), stored, "no room, and yet stored");

        world.change_stream(make_room).await.expect("the stream is changed");
        assert_eq!(send(&event).await.status, 200, "there is room");
        assert_eq!(world.stored().await.expect("a count"), stored + 1);
    }
}

#[tokio::test]
async fn without_a_stream_slack_is_told_so_in_time_and_a_migration_mends_it() {
    let world = World::start(DOOR).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    world.jetstream().delete_stream(STREAM).await.expect("the stream is deleted");
    let (event, command) = (hello(&world, &app), help(&world, &app));
    let (told, user_told) = tokio::join!(world.send(&app, &event), world.send(&app, &command));
    is_retry_later(&told.expect("an answer"), SLACKS_DEADLINE);
    tells_the_user(&user_told.expect("an answer"), SLACKS_DEADLINE);
    world.tidegate(&["migrate"]).expect("the stream is made");
    assert_eq!(world.send(&app, &event).await.expect("an answer").status, 200);
    assert_eq!(world.stored().await.expect("a count"), 1);
}

#[tokio::test]
async fn while_nats_hangs_slack_is_told_so_in_time_and_what_it_sends_again_is_handled_once() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let (event, command) = (hello(&world, &app), help(&world, &app));
    world.nats.freeze();
    let (told, user_told) = tokio::join!(world.send(&app, &event), world.send(&app, &command));
    is_retry_later(&told.expect("an answer"), SLACKS_DEADLINE);
    tells_the_user(&user_told.expect("an answer"), SLACKS_DEADLINE);
    world.nats.thaw();
    for webhook in [&event, &command] {
        until("it is taken when sent again", SOON, async || {
            let answer = world.send(&app, webhook).await.ok()?;
            (answer.status == 200 && answer.body.is_empty()).then_some(())
        })
        .await;
        world.handled(&webhook.dedupe).await;
    }
    // Behind both, in the same queue: once its answer is there, a second one to them would be, too.
    let last = help(&world, &app);
    assert_eq!(world.send(&app, &last).await.expect("an answer").status, 200);
    world.slack.told("the last one", |receipt| last.response_url.ends_with(&receipt.to)).await;
    let receipts = world.slack.receipts();
    let answered = receipts.iter().filter(|receipt| command.response_url.ends_with(&receipt.to));
    assert_eq!(answered.count(), 1);
    assert_eq!(world.stored().await.expect("a count"), 3, "the tries of one webhook are one");
}

#[tokio::test]
async fn while_nats_is_away_memory_stays_flat_and_afterwards_nothing_is_stored_twice() {
    const WEBHOOKS: usize = 2_000;
    const AT_ONCE: usize = 200;
    let world = World::start(DOOR).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let ingest = &world.ingests[0].process;
    let text = "x".repeat(20 * 1024);
    let webhooks: Vec<Webhook> =
        (0..WEBHOOKS).map(|_| Webhook::message(&world.slack, &app, "C1", "U1", &text)).collect();
    let before = ingest.resident().expect("it runs");
    world.nats.kill();
    until("ingest knows that NATS is away", SOON, async || {
        (world.ingests[0].metric("tidegate_ingest_nats_connected").await.ok()? == 0.0).then_some(())
    })
    .await;

    let mut highest = before;
    let mut answers =
        stream::iter(&webhooks).map(|webhook| world.send(&app, webhook)).buffer_unordered(AT_ONCE);
    while let Some(answer) = answers.next().await {
        assert_eq!(answer.expect("an answer").status, 503);
        highest = highest.max(ingest.resident().expect("it runs"));
    }
    // By ingest's own clock: with so many at once this client is itself late.
    let answered = async |within: &str| {
        let route = "http_route=\"/api/v1/webhooks/{connection}\",status_class=\"5xx\"";
        let line = format!(
            "tidegate_http_server_request_duration_seconds_bucket{{le=\"{within}\",{route}}}"
        );
        world.ingests[0].metric(&line).await.expect("metrics")
    };
    assert_eq!((answered("3.0").await, answered("+Inf").await), (WEBHOOKS as f64, WEBHOOKS as f64));
    let grown = (highest - before) / 1024;
    assert!(highest - before < 40 * MIB, "{WEBHOOKS} webhooks made it grow by {grown} KiB");

    world.nats.restart().await.expect("NATS comes back");
    world.ingests[0].ready().await.expect("ingest finds it");
    let count = until("the stream is back", SOON, async || world.stored().await.ok()).await;
    assert_eq!(count, 0, "answered with a no, kept in memory, and stored all the same");
    let mut resent = stream::iter(&webhooks)
        .map(async |webhook| {
            until("it is taken when sent again", SOON, async || {
                let answer = world.send(&app, webhook).await.ok()?;
                (answer.status == 200).then_some(())
            })
            .await;
        })
        .buffer_unordered(64);
    while resent.next().await.is_some() {}
    assert_eq!(world.stored().await.expect("a count"), WEBHOOKS as u64, "each of them, once");
}
