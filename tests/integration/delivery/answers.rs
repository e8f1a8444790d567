//! Answers of agents: limits of Slack, broadcasts, deleted messages, and order.

use serde_json::{Value, json};
use shared::{
    runtime::{config::PostgresConfig, telemetry::ErrorChain},
    store::{KeyRings, NewConnection, PlanMode, Store},
};
use std::time::Duration;
use tests::{
    eventually::eventually,
    slack::{
        fault_injection::{Fault, FaultRule},
        webhook::Webhook,
    },
    test_env::{App, SMALL, TIMEOUT, TestEnv, agent_id},
};

fn answered(new: &mut NewConnection) {
    new.agent = Some(agent_id());
}

async fn send_message(env: &TestEnv, app: &App, channel: &str, text: &str) -> Webhook {
    let webhook = Webhook::message(&env.slack, app, channel, "U1", text);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    webhook
}

async fn first_failure(env: &TestEnv) -> String {
    eventually("the message is given up", TIMEOUT, async || {
        let query = sqlx::query_scalar("select error from outbox_failures");
        query.fetch_optional(&env.pool).await.ok()?
    })
    .await
}

/// `@channel` in an agent's answer notifies nobody unless the connection's setting `broadcasts` is
/// on.
#[tokio::test]
async fn neutralizes_broadcasts_of_agents() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(answered).await.expect("a connection");
    let allowed = |new: &mut NewConnection| {
        answered(new);
        new.settings.broadcasts = true;
    };
    let allowed = env.connect_as(allowed).await.expect("another");
    let rich = json!({ "blocks": [{ "type": "rich_text", "elements": [{ "type": "rich_text_section",
        "elements": [{ "type": "broadcast", "range": "channel" }] }] }] });
    send_message(&env, &app, "C1", "hi <!channel>").await;
    send_message(&env, &app, "C2", &format!("json {rich}")).await;
    send_message(&env, &allowed, "C3", "hi <!channel>").await;
    let posted_in = async |channel: &str| {
        env.slack.wait_for_receipt(channel, |receipt| receipt.to == channel).await
    };
    let plain = posted_in("C1").await;
    assert_eq!(plain.text(), "I heard: hi @channel");
    assert_eq!(
        (&plain.body["unfurl_links"], &plain.body["unfurl_media"]),
        (&json!(false), &json!(false))
    );
    let element = posted_in("C2").await.body["blocks"][0]["elements"][0]["elements"][0].clone();
    assert_eq!(element, json!({ "type": "text", "text": "@channel" }));
    assert_eq!(posted_in("C3").await.text(), "I heard: hi <!channel>");
}

/// Texts and blocks over Slack's limits are cut, so that Slack accepts each message at the first
/// call.
#[tokio::test]
async fn shortens_answers_to_slacks_limits() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(answered).await.expect("a connection");
    let section =
        |text: &str| json!({ "type": "section", "text": { "type": "mrkdwn", "text": text } });
    for (channel, answer) in [
        ("C1", json!({ "text": "x".repeat(40_001) })),
        ("C2", json!({ "blocks": vec![section("x"); 51] })),
        ("C3", json!({ "text": "short", "blocks": [section(&"x".repeat(3_001))] })),
    ] {
        send_message(&env, &app, channel, &format!("json {answer}")).await;
    }
    let posted_in = async |channel: &str| {
        env.slack.wait_for_receipt(channel, |receipt| receipt.to == channel).await.body
    };
    assert!(posted_in("C1").await["text"].as_str().is_some_and(|text| text.ends_with("x…")));
    let blocks = posted_in("C2").await["blocks"].as_array().expect("blocks").len();
    assert_eq!(blocks, 50);
    let text = posted_in("C3").await["blocks"][0]["text"]["text"].clone();
    assert!(text.as_str().is_some_and(|text| text.ends_with("x…")), "the blocks are sent, too");
    assert_eq!(env.slack.calls_of("chat.postMessage").len(), 3, "Slack refused none");
}

/// An answer with an unpaired surrogate and fields of a wrong type is sent, without a second call
/// of the agent.
#[tokio::test]
async fn reads_answers_with_odd_characters() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(answered).await.expect("a connection");
    send_message(&env, &app, "C1", r#"json {"text":"cut \ud83d","blocks":null,"ephemeral":"?"}"#)
        .await;
    env.slack.wait_for_receipt("the answer", |receipt| receipt.text() == "cut \u{fffd}").await;
    assert_eq!(env.agent.requests().len(), 1);
}

/// A message of files only reaches the agent with its files. A message without text and files is
/// ignored.
#[tokio::test]
async fn sends_files_and_ignores_empty() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(answered).await.expect("a connection");
    let shared = |files: Value| {
        let ts = env.slack.ts();
        let inner = json!({ "type": "message", "subtype": "file_share", "channel": "D1", "user": "U1",
            "text": "", "ts": ts, "event_ts": ts, "channel_type": "im", "files": files });
        Webhook::event(&env.slack, &app, "a file", inner)
    };
    let file = json!({ "id": "F1", "name": "a.pdf", "mimetype": "application/pdf", "size": 9 });
    let (empty, full) = (shared(json!([])), shared(json!([file])));
    for webhook in [&empty, &full] {
        env.send(&app, webhook).await.expect("an answer");
    }
    assert_eq!(env.wait_for_outcome(&empty.dedup_key).await.outcome, "ignored");
    assert_eq!(env.wait_for_outcome(&full.dedup_key).await.outcome, "completed");
    let asked = env.agent.requests();
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].question["files"], json!([file]));
}

/// The answer to a message that was deleted meanwhile is not posted.
#[tokio::test]
async fn drops_answer_to_deleted_message() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(answered).await.expect("a connection");
    let ts = env.slack.ts();
    let question =
        Webhook::message_event(&env.slack, &app, "message", "D1", "U1", "slow:3000 hello", &ts);
    env.send(&app, &question).await.expect("an answer");
    eventually("the agent is asked", TIMEOUT, async || env.agent.requests().pop()).await;
    let deletion_ts = env.slack.ts();
    let deletion = json!({ "type": "message", "subtype": "message_deleted", "hidden": true,
        "channel": "D1", "channel_type": "im", "ts": deletion_ts, "event_ts": deletion_ts,
        "deleted_ts": ts, "previous_message": { "type": "message", "user": "U1", "ts": ts } });
    let deletion = Webhook::event(&env.slack, &app, "a deletion", deletion);
    env.send(&app, &deletion).await.expect("an answer");
    assert_eq!(env.wait_for_outcome(&deletion.dedup_key).await.outcome, "deletion");
    assert_eq!(env.wait_for_outcome(&question.dedup_key).await.outcome, "message_deleted");
    send_message(&env, &app, "D1", "next").await;
    env.slack
        .wait_for_receipt("the next answer", |receipt| receipt.text() == "I heard: next")
        .await;
    assert_eq!(env.slack.calls_of("chat.postMessage").len(), 1);
}

/// A reply that Slack posts into the channel because its thread is deleted is deleted again.
#[tokio::test]
async fn withdraws_reply_to_deleted_thread() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(answered).await.expect("a connection");
    let ts = env.slack.ts();
    let question =
        Webhook::message_event(&env.slack, &app, "message", "C1", "U1", "slow:1500 hello", &ts);
    env.send(&app, &question).await.expect("an answer");
    eventually("the agent is asked", TIMEOUT, async || env.agent.requests().pop()).await;
    env.slack.delete(&app.team, "C1", &ts);
    assert_eq!(first_failure(&env).await, "the thread of the message was deleted");
    assert_eq!(env.slack.messages(&app.team, "C1"), [], "the channel has no messages");
}

/// If Slack refuses the blocks of an answer, its text is sent alone.
#[tokio::test]
async fn sends_text_without_refused_blocks() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(answered).await.expect("a connection");
    let refusal = Fault::ApiError("invalid_blocks".into());
    env.slack.inject_fault(FaultRule::new(refusal).on("chat.postMessage").times(1));
    send_message(&env, &app, "C1", "blocks hello").await;
    let posted = env.slack.wait_for_receipt("the text", |receipt| receipt.to == "C1").await;
    assert_eq!((posted.text(), &posted.body["blocks"]), ("I heard: blocks hello", &Value::Null));
    let calls = env.slack.calls_of("chat.postMessage");
    assert_eq!(calls.iter().filter(|call| call.args["blocks"].is_array()).count(), 1);
    assert_eq!(calls.len(), 2);
}

/// A body with `"ok": false` counts as a failure, although the `response_url` answers with status
/// 200.
#[tokio::test]
async fn counts_ok_false_as_failure() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let refusal = Fault::ApiError("invalid_blocks".into());
    env.slack.inject_fault(FaultRule::new(refusal).on("response_url").times(1));
    let help = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "help");
    env.send(&app, &help).await.expect("an answer");
    assert_eq!(first_failure(&env).await, "invalid_blocks");
}

/// Answers keep their order in a channel in which Slack takes one message a second and limits the
/// rate once.
#[tokio::test]
async fn keeps_order_within_channel() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(answered).await.expect("a connection");
    let limited = FaultRule::new(Fault::RateLimited(3)).on("chat.postMessage").times(1);
    env.slack.inject_fault(limited);
    let mut expected = Vec::new();
    for n in 0..8 {
        let question = send_message(&env, &app, "C1", &format!("number {n}")).await;
        env.wait_for_outcome(&question.dedup_key).await;
        expected.push(format!("I heard: number {n}"));
    }
    eventually("all are answered", TIMEOUT, async || {
        (env.slack.receipts().len() == 8).then_some(())
    })
    .await;
    let receipts = env.slack.receipts();
    assert_eq!(receipts.iter().map(|receipt| receipt.text()).collect::<Vec<_>>(), expected);
}

/// Workers continue when a column's type changes while their sessions hold prepared statements.
#[tokio::test]
async fn continues_after_column_type_change() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(answered).await.expect("a connection");
    for n in 0..8 {
        send_message(&env, &app, &format!("D{n}"), "before").await;
    }
    let answers = |text: &str| {
        let wanted = format!("I heard: {text}");
        env.slack.receipts().iter().filter(|receipt| receipt.text() == wanted).count()
    };
    eventually("all are answered", TIMEOUT, async || (answers("before") == 8).then_some(())).await;
    let database = sqlx::query_scalar("select current_database()");
    let database: String = database.fetch_one(&env.pool).await.expect("a name");
    let url = env.postgres.url_as("tidegate_worker", &database);
    let of_one_session = PostgresConfig { url, ca_file: None, max_connections: 1 };
    let store = Store::new(&of_one_session, KeyRings::default(), PlanMode::Once).expect("a store");
    store.connection_summaries(None).await.expect("the statement is prepared");
    for alter in [
        "alter table agents alter column name type varchar(200)",
        "alter table connections alter column bot_user_id type varchar(200)",
    ] {
        sqlx::query(alter).execute(&env.pool).await.expect(alter);
    }
    let error = store.connection_summaries(None).await.expect_err("the plan is outdated");
    assert!(ErrorChain(&error).to_string().contains("cached plan"), "{error}");
    store.connection_summaries(None).await.expect("another session takes its place");
    for n in 0..8 {
        send_message(&env, &app, &format!("D{n}"), "after").await;
    }
    eventually("all are answered", Duration::from_secs(20), async || {
        (answers("after") == 8).then_some(())
    })
    .await;
}
