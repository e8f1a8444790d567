//! Streamed messages of the simulated Slack: limits and errors as Slack documents them, and the
//! lifetime that apps report.

use serde_json::{Value, json};
use std::time::Duration;
use tests::slack::{
    Slack, blocks::notifies, sessions::AppKind, streams::StreamingState, tokens::Installation,
};

const TOKEN: &str = "xoxb-1";
const ROOT: &str = "1.000001";

async fn start_slack() -> Slack {
    let _ = rustls::crypto::ring::default_provider().install_default(); // again for every test
    let slack = Slack::start().await.expect("a Slack");
    slack.install(TOKEN, Installation::new("A1", "T1", "UBOT1"));
    slack.write("T1", "D1", "U1", "hello", ROOT);
    slack.write("T1", "C1", "U1", "hello", ROOT);
    slack
}

async fn call(slack: &Slack, method: &str, args: Value) -> Value {
    let url = format!("{}{method}", slack.api());
    let sent = reqwest::Client::new().post(url).bearer_auth(TOKEN).json(&args).send().await;
    sent.expect("an answer").json().await.expect("JSON")
}

fn text(text: &str) -> Value {
    json!([{ "type": "markdown_text", "text": text }])
}

async fn start_stream(slack: &Slack) -> Value {
    let args = json!({ "channel": "D1", "thread_ts": ROOT, "chunks": text("a") });
    let started = call(slack, "chat.startStream", args).await;
    assert_eq!(started["ok"], true, "{started}");
    started["ts"].clone()
}

async fn append(slack: &Slack, ts: &Value, chunks: Value) -> Value {
    let args = json!({ "channel": "D1", "ts": ts, "chunks": chunks });
    call(slack, "chat.appendStream", args).await
}

/// `chat.startStream` requires a thread, and in a channel a recipient.
#[tokio::test]
async fn checks_place_of_stream() {
    let slack = start_slack().await;
    for (args, error) in [
        (json!({ "channel": "D1", "chunks": text("a") }), "invalid_thread_ts"),
        (json!({ "channel": "D1", "thread_ts": "9.9", "chunks": text("a") }), "invalid_thread_ts"),
        (json!({ "channel": "C1", "thread_ts": ROOT }), "missing_recipient_user_id"),
        (
            json!({ "channel": "C1", "thread_ts": ROOT, "recipient_user_id": "U1" }),
            "missing_recipient_team_id",
        ),
        (
            json!({ "channel": "D1", "thread_ts": ROOT, "markdown_text": "a", "chunks": text("a") }),
            "cannot_provide_both_markdown_text_and_chunks",
        ),
    ] {
        assert_eq!(call(&slack, "chat.startStream", args.clone()).await["error"], error, "{args}");
    }
    let complete = json!({
        "channel": "C1", "thread_ts": ROOT, "recipient_user_id": "U1", "recipient_team_id": "T1",
    });
    assert_eq!(call(&slack, "chat.startStream", complete).await["ok"], true);
}

/// Chunks over Slack's limits and of unknown types get Slack's errors, and valid ones are joined.
#[tokio::test]
async fn checks_chunks_of_stream() {
    let slack = start_slack().await;
    let ts = start_stream(&slack).await;
    let task = |title: &str, status: &str| json!([{ "type": "task_update", "id": "t", "title": title, "status": status }]);
    for (chunks, error) in [
        (task(&"x".repeat(257), "complete"), "invalid_chunks"),
        (task("x", "done"), "invalid_chunks"),
        (json!([{ "type": "song" }]), "invalid_chunks"),
        (json!([{ "type": "blocks", "blocks": vec![json!({}); 51] }]), "msg_blocks_too_many"),
        (text(&"x".repeat(12_001)), "msg_too_long"),
    ] {
        assert_eq!(append(&slack, &ts, chunks.clone()).await["error"], error);
    }
    let mismatch = json!({ "channel": "D1", "ts": ts, "markdown_text": "b" });
    let mismatch = call(&slack, "chat.appendStream", mismatch).await;
    assert_eq!(mismatch["error"], "streaming_mode_mismatch");
    assert_eq!(append(&slack, &ts, task("x", "complete")).await["ok"], true);
    let stopped = json!({ "channel": "D1", "ts": ts, "chunks": text("b") });
    let stopped = call(&slack, "chat.stopStream", stopped).await;
    assert_eq!(stopped["message"]["text"], "ab", "{stopped}");
    assert_eq!(stopped["message"]["streaming_state"], "completed");
}

/// A stream ends after five minutes. Its message can be updated afterwards, not before.
#[tokio::test]
async fn ends_streams_like_slack() {
    let slack = start_slack().await;
    let ts = start_stream(&slack).await;
    let update = json!({ "channel": "D1", "ts": ts, "text": "whole" });
    let early = call(&slack, "chat.update", update.clone()).await;
    assert_eq!(early["error"], "streaming_state_conflict");
    slack.clock().advance(Duration::from_secs(299));
    assert_eq!(append(&slack, &ts, text("b")).await["ok"], true);
    slack.clock().advance(Duration::from_secs(2));
    let late = append(&slack, &ts, text("c")).await;
    assert_eq!(late["error"], "message_not_in_streaming_state");
    let state = || slack.messages("T1", "D1")[1].stream.as_ref().map(|stream| stream.state);
    assert_eq!(state(), Some(StreamingState::Errored));
    assert_eq!(call(&slack, "chat.update", update).await["ok"], true);
    assert_eq!(state(), Some(StreamingState::Completed));
}

/// Status, title and prompts have Slack's errors for each kind of app.
#[tokio::test]
async fn checks_sessions() {
    let slack = start_slack().await;
    let session = |fields: Value| {
        let mut args = json!({ "channel_id": "D1", "thread_ts": ROOT });
        for (name, value) in fields.as_object().into_iter().flatten() {
            args[name] = value.clone();
        }
        args
    };
    let error = async |method: &str, fields: Value| {
        call(&slack, method, session(fields)).await["error"].as_str().map(str::to_owned)
    };
    let (set, rename) = ("agents.sessions.setStatus", "agents.sessions.rename");
    for (method, fields, expected) in [
        (set, json!({ "status": "busy" }), "invalid_status"),
        (set, json!({ "status": "active", "thread_ts": "" }), "thread_ts_required"),
        (rename, json!({ "title": "Plan" }), "session_not_found"),
        (rename, json!({ "title": "x".repeat(201) }), "invalid_name"),
    ] {
        let refused = error(method, fields.clone()).await;
        assert_eq!(refused.as_deref(), Some(expected), "{method} {fields}");
    }
    assert_eq!(error(set, json!({ "status": "processing", "title": "Old" })).await, None);
    assert_eq!(error(rename, json!({ "title": "Plan" })).await, None);
    let shown = || slack.session("T1", "D1", ROOT).map(|session| (session.status, session.title));
    assert_eq!(shown(), Some(("processing".into(), "Plan".into())));
    slack.clock().advance(Duration::from_secs(3_601));
    assert_eq!(shown().map(|(status, _)| status), Some("active".into()));

    let prompts = "assistant.threads.setSuggestedPrompts";
    let set_prompts = json!({ "prompts": [{ "title": "a", "message": "b" }] });
    assert_eq!(error(prompts, set_prompts.clone()).await, None);
    assert_eq!(slack.prompts("T1", "D1"), None, "Slack ignores prompts for a thread");
    slack.set_sessions(|sessions| sessions.kind = AppKind::Assistant);
    let without_thread = json!({ "channel_id": "D1", "prompts": set_prompts["prompts"] });
    let refused = call(&slack, prompts, without_thread).await;
    assert_eq!(refused["error"], "missing_thread_ts");
    assert_eq!(error(set, json!({ "status": "active" })).await.as_deref(), Some("not_authorized"));
    slack.set_sessions(|sessions| sessions.kind = AppKind::Plain);
    let status = error("assistant.threads.setStatus", json!({ "status": "x" })).await;
    assert_eq!(status.as_deref(), Some("not_agent_app"));
}

/// Blocks over Slack's limits get its errors, and mentions of channels and groups are recognized.
#[tokio::test]
async fn checks_blocks() {
    let slack = start_slack().await;
    let markdown = |text: &str| json!({ "type": "markdown", "text": text });
    let raw = |text: &str| json!({ "type": "raw_text", "text": text });
    let table = |rows: Vec<Vec<Value>>| json!({ "type": "table", "rows": rows });
    let valid = table(vec![vec![raw("a"); 20]; 100]);
    for (blocks, error) in [
        (json!([markdown("x"), valid]), None),
        (json!([markdown(" \n")]), Some("invalid_blocks")),
        (
            json!([markdown(&"x".repeat(6_001)), markdown(&"x".repeat(6_000))]),
            Some("msg_blocks_too_long"),
        ),
        (json!([valid, valid]), Some("invalid_blocks")),
        (json!([table(vec![vec![raw("a")]; 101])]), Some("invalid_blocks")),
        (json!([table(vec![vec![raw("a"); 21]])]), Some("invalid_blocks")),
        (json!([table(vec![vec![raw("")]])]), Some("invalid_blocks")),
        (json!([table(vec![vec![raw(&"x".repeat(10_001))]])]), Some("invalid_blocks")),
        (json!([{ "type": "context", "elements": [] }]), Some("invalid_blocks")),
        (Value::Array(vec![json!({ "type": "divider" }); 51]), Some("invalid_blocks")),
    ] {
        let args = json!({ "channel": "D1", "text": "x", "blocks": blocks });
        let posted = call(&slack, "chat.postMessage", args).await;
        assert_eq!(posted["error"].as_str(), error, "{blocks}");
    }
    for text in ["<!channel>", "<!subteam^S1>", "@Here", "a <!EVERYONE|x>"] {
        assert!(notifies(&json!({ "blocks": [markdown(text)] })), "{text}");
    }
    assert!(notifies(&json!([{ "type": "broadcast", "range": "here" }])));
    assert!(!notifies(&json!(["@home", "<@U1>", "<!DOCTYPE html>"])));
}
