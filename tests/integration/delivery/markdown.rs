//! Answers in Markdown: Slack refuses none for its form, and none notifies a channel.

use futures_util::StreamExt;
use std::time::{Duration, Instant};
use tests::{
    eventually::eventually,
    size::ci_or_full,
    slack::{
        api::{Call, Outcome},
        blocks::notifies,
        webhook::Webhook,
    },
    test_env::{App, SMALL, TestEnv, agent_id},
};

/// Documents of one streamed answer.
const STREAMED_AT_ONCE: u64 = 10;

async fn start_env() -> (TestEnv, App) {
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    for (name, value) in [
        ("TIDEGATE_SLACK_APPEND_MIN_INTERVAL", "1ms"),
        ("TIDEGATE_SLACK_STREAM_MIN_INTERVAL", "1ms"),
        ("TIDEGATE_SLACK_EDIT_MIN_INTERVAL", "1ms"),
    ] {
        env.set(name, value);
    }
    env.start_processes().await.expect("processes");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    (env, app)
}

async fn ask_all(env: &TestEnv, app: &App, questions: impl Iterator<Item = (String, String)>) {
    let sending = questions.map(async |(channel, text)| {
        let webhook = Webhook::message(&env.slack, app, &channel, "U1", &text);
        assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
        webhook
    });
    let mut sending = futures_util::stream::iter(sending).buffer_unordered(16);
    while let Some(webhook) = sending.next().await {
        drop(webhook);
    }
}

async fn wait_until_answered(env: &TestEnv) {
    let left = async || {
        let left: i64 = sqlx::query_scalar(
            "select (select count(*) from deliveries) + (select count(*) from outbox)",
        )
        .fetch_one(&env.pool)
        .await
        .expect("a count");
        (left == 0).then_some(())
    };
    eventually("all answers are sent", Duration::from_secs(600), left).await;
}

/// Error of workspaces without streams.
const WITHOUT_STREAMS: &str = "channel_type_not_supported";

/// Returns whether a call posts, updates or streams a message, except those that Slack refused
/// because it has no streams.
fn is_written(call: &&Call) -> bool {
    call.method.starts_with("chat.") && call.outcome != Outcome::Refused(WITHOUT_STREAMS.into())
}

/// Checks that Slack refused no call and that no text notifies people. Returns the number of calls.
fn check(env: &TestEnv) -> usize {
    let calls = env.slack.calls();
    let calls: Vec<&Call> = calls.iter().filter(is_written).collect();
    for call in &calls {
        assert_eq!(call.outcome, Outcome::Accepted, "{}: {}", call.method, call.args);
        assert!(!notifies(&call.args), "{}: {}", call.method, call.args);
    }
    calls.len()
}

/// Slack refuses no call for any of thousands of Markdown documents, sent as JSON answers, streams
/// and edited messages.
#[tokio::test]
async fn sends_any_markdown() {
    let documents: u64 = ci_or_full(10_000, 100_000);
    let (env, app) = start_env().await;
    let began = Instant::now();
    let streamed = documents / 10;
    let json =
        (0..documents - 2 * streamed).map(|n| (format!("C{}", n % 512), format!("markdown:{n}")));
    ask_all(&env, &app, json).await;
    wait_until_answered(&env).await;
    let stream = |from: u64, kind: &'static str| {
        let all = (from..from + streamed).step_by(STREAMED_AT_ONCE as usize);
        all.map(move |n| (format!("{kind}{}", n % 512), format!("markdown:{n}:{STREAMED_AT_ONCE}")))
    };
    ask_all(&env, &app, stream(documents - 2 * streamed, "CS")).await;
    wait_until_answered(&env).await;
    env.slack.set_streams(|streams| streams.refuses = Some(WITHOUT_STREAMS.into()));
    let first = Webhook::message(&env.slack, &app, "CE", "U1", "stream:2:1:4");
    env.send(&app, &first).await.expect("an answer");
    env.wait_for_outcome(&first.dedup_key).await;
    let asked = env.slack.calls_of("chat.startStream").len();
    ask_all(&env, &app, stream(documents - streamed, "CE")).await;
    wait_until_answered(&env).await;
    let starts = env.slack.calls_of("chat.startStream");
    assert_eq!(starts.len(), asked, "a stream is begun where Slack refused one");
    let calls = check(&env);
    let tables =
        env.slack.calls().iter().filter(|c| c.args.to_string().contains("\"table\"")).count();
    println!("{documents} documents, {calls} calls, {tables} with tables, {:?}", began.elapsed());
    assert!(calls as u64 >= documents && tables > 100);
    assert!(env.dead_letters().await.expect("dead letters").is_empty());
}

/// A Markdown table is sent as a table block between Markdown blocks.
#[tokio::test]
async fn converts_table_to_block() {
    let (env, app) = start_env().await;
    let answer =
        serde_json::json!({ "markdown": "Look:\n\n| a | b |\n|---|--:|\n| 1 | 2 |\n\nDone." });
    let question = Webhook::message(&env.slack, &app, "C1", "U1", &format!("json {answer}"));
    env.send(&app, &question).await.expect("an answer");
    env.wait_for_outcome(&question.dedup_key).await;
    let posted = env.slack.wait_for_receipt("an answer", |r| r.by == "chat.postMessage").await;
    let types: Vec<&str> = posted.body["blocks"]
        .as_array()
        .expect("blocks")
        .iter()
        .filter_map(|block| block["type"].as_str())
        .collect();
    assert_eq!(types, ["markdown", "table", "markdown"]);
    check(&env);
}
