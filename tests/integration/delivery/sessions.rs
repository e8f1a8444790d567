//! Sessions in Slack: status, title and suggested prompts, for each kind of app.

use serde_json::{Value, json};
use std::time::Duration;
use tests::{
    eventually::eventually,
    slack::{
        fault_injection::{Fault, FaultRule},
        sessions::{AppKind, Session},
        webhook::Webhook,
    },
    test_env::{App, SMALL, TIMEOUT, TestEnv, agent_id},
};

async fn start_env() -> (TestEnv, App) {
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    for (name, value) in [
        ("TIDEGATE_STREAMED_MESSAGE_MAX_AGE", "1s"),
        ("TIDEGATE_SLACK_APPEND_MIN_INTERVAL", "12ms"),
        ("TIDEGATE_SLACK_STREAM_MIN_INTERVAL", "50ms"),
    ] {
        env.set(name, value);
    }
    env.start_processes().await.expect("processes");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    (env, app)
}

/// Sends a question. Returns the webhook and the id of the message.
async fn ask(env: &TestEnv, app: &App, channel: &str, text: &str) -> (Webhook, String) {
    let ts = env.slack.ts();
    let webhook = Webhook::message_event(&env.slack, app, "message", channel, "U1", text, &ts);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    (webhook, ts)
}

async fn wait_for_session(
    env: &TestEnv,
    app: &App,
    (channel, ts): (&str, &str),
    wanted: impl Fn(&Session) -> bool,
) -> Session {
    let session = async || env.slack.session(&app.team, channel, ts).filter(&wanted);
    eventually("the session changes", TIMEOUT, session).await
}

fn statuses(env: &TestEnv, method: &str, channel: &str) -> Vec<Value> {
    let mut calls = env.slack.calls_of(method);
    calls.retain(|call| call.channel == channel);
    calls.into_iter().map(|call| call.args["status"].clone()).collect()
}

/// A slow agent's session has the status `processing` until its answer. A quick agent sets no
/// status.
#[tokio::test]
async fn shows_status_of_slow_agent() {
    let (env, app) = start_env().await;
    let (question, ts) = ask(&env, &app, "C1", "slow:4000 hello").await;
    ask(&env, &app, "C2", "hello").await;
    wait_for_session(&env, &app, ("C1", &ts), |session| session.status == "processing").await;
    assert_eq!(env.wait_for_outcome(&question.dedup_key).await.outcome, "completed");
    wait_for_session(&env, &app, ("C1", &ts), |session| session.status == "active").await;
    let method = "agents.sessions.setStatus";
    assert_eq!(statuses(&env, method, "C1"), ["processing", "active"]);
    assert!(statuses(&env, method, "C2").is_empty(), "a quick agent has a status");
    assert!(env.slack.calls_of("assistant.threads.setStatus").is_empty());
}

/// Where Slack refuses sessions the assistant status is used, and none if that is refused, too.
/// Refusals are remembered and delay no answer.
#[tokio::test]
async fn falls_back_without_sessions() {
    let (env, app) = start_env().await;
    env.slack.set_sessions(|sessions| sessions.kind = AppKind::Assistant);
    let (_, ts) = ask(&env, &app, "C1", "slow:4000 hello").await;
    wait_for_session(&env, &app, ("C1", &ts), |session| session.status == "processing").await;
    let status = &env.slack.calls_of("assistant.threads.setStatus")[0].args;
    assert_eq!(
        (&status["channel_id"], &status["thread_ts"], &status["status"]),
        (&json!("C1"), &json!(ts), &json!("is thinking…"))
    );
    let (again, _) = ask(&env, &app, "C2", "slow:3000 hello").await;
    env.wait_for_outcome(&again.dedup_key).await;
    assert_eq!(env.slack.calls_of("agents.sessions.setStatus").len(), 1);
    // Slack ends the status with the answer.
    assert_eq!(statuses(&env, "assistant.threads.setStatus", "C1"), ["is thinking…"]);

    let plain = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    env.slack.set_sessions(|sessions| sessions.kind = AppKind::Plain);
    for channel in ["C3", "C4"] {
        let (question, _) = ask(&env, &plain, channel, "slow:3000 hello").await;
        assert_eq!(env.wait_for_outcome(&question.dedup_key).await.outcome, "completed");
    }
    let refused = env.slack.calls_of("assistant.threads.setStatus");
    assert_eq!(refused.iter().filter(|call| call.team == plain.team).count(), 1);
}

/// The status `processing` lasts over all messages of a streamed answer.
#[tokio::test]
async fn keeps_status_until_stream_ends() {
    let (env, app) = start_env().await;
    let (question, ts) = ask(&env, &app, "D1", "stream:80:100:8 please").await;
    wait_for_session(&env, &app, ("D1", &ts), |session| session.status == "processing").await;
    let rolled = async || (env.slack.calls_of("chat.stopStream").len() >= 2).then_some(());
    eventually("the answer continues in another message", TIMEOUT, rolled).await;
    let session = env.slack.session(&app.team, "D1", &ts).expect("a session");
    assert!(env.find_outcome(&question.dedup_key).await.is_none(), "the answer has ended");
    assert_eq!(session.status, "processing");
    assert_eq!(env.wait_for_outcome(&question.dedup_key).await.outcome, "completed");
    wait_for_session(&env, &app, ("D1", &ts), |session| session.status == "active").await;
    let stops = env.slack.calls_of("chat.stopStream");
    let (last, others) = stops.split_last().expect("stops");
    assert!(others.iter().all(|stop| stop.args["session_status"] == "processing"));
    assert_eq!(last.args["session_status"], Value::Null);
    assert!(
        env.slack.calls_of("agents.sessions.setStatus").is_empty(),
        "Slack changes the status of a stream"
    );
}

/// Title and prompts of an answer are set for agent apps and for assistant apps.
#[tokio::test]
async fn sets_title_and_prompts() {
    let (env, app) = start_env().await;
    let prompts = json!([{ "title": "Why?", "message": "Why so?" }]);
    let answer = json!({ "text": "x", "title": "Plan", "prompts": prompts });
    let (_, ts) = ask(&env, &app, "D1", &format!("json {answer}")).await;
    wait_for_session(&env, &app, ("D1", &ts), |session| session.title == "Plan").await;
    let set = async || env.slack.prompts(&app.team, "D1").filter(|set| *set == prompts);
    eventually("prompts are set", TIMEOUT, set).await;

    let other = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    env.slack.set_sessions(|sessions| sessions.kind = AppKind::Assistant);
    ask(&env, &other, "D2", &format!("json {answer}")).await;
    let set = async || env.slack.prompts(&other.team, "D2").filter(|set| *set == prompts);
    eventually("prompts of a thread are set", TIMEOUT, set).await;
    assert_eq!(env.slack.calls_of("assistant.threads.setTitle").len(), 1);
}

/// In an agent's direct message each message without a thread begins a session: its answers are in
/// its thread, and sessions do not wait for each other.
#[tokio::test]
async fn opens_session_per_thread_in_dm() {
    let (env, app) = start_env().await;
    let send = async |text: &str, thread_ts: Option<&str>| {
        let ts = env.slack.ts();
        let mut inner = json!({
            "type": "message", "channel": "D1", "channel_type": "im", "user": "U1", "text": text,
            "ts": ts, "event_ts": ts, "app_context": { "entities": [] },
        });
        if let Some(root) = thread_ts {
            inner["thread_ts"] = root.into();
        }
        env.slack.write(&app.team, "D1", "U1", text, &ts);
        let webhook = Webhook::event(&env.slack, &app, text, inner);
        assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
        ts
    };
    let first = send("stream:100:100:8 slowly", None).await;
    let second = send("hello", None).await;
    let posted = |text: &'static str| env.slack.wait_for_receipt(text, move |r| r.text() == text);
    assert_eq!(posted("I heard: hello").await.body["thread_ts"], *second);
    send("more", Some(&second)).await;
    assert_eq!(posted("I heard: more").await.body["thread_ts"], *second);
    let session = wait_for_session(&env, &app, ("D1", &first), |_| true).await;
    assert_eq!(session.status, "processing", "the first answer ended");
    let mut threads: Vec<Value> =
        env.agent.requests().iter().map(|asked| asked.question["thread_ts"].clone()).collect();
    threads.sort_by_key(Value::to_string); // sessions are asked in any order
    assert_eq!(threads, [&first, &second, &second].map(|ts| json!(ts)));
}

/// Answers do not wait for calls that set a status, even if Slack does not answer these.
#[tokio::test]
async fn delays_no_answer_for_status() {
    let (env, app) = start_env().await;
    env.slack.inject_fault(FaultRule::new(Fault::Silent).on("agents.sessions.setStatus"));
    let began = std::time::Instant::now();
    for n in 0..20 {
        ask(&env, &app, &format!("C{n}"), "slow:2500 hello").await;
    }
    let answered = async || (env.slack.receipts().len() >= 20).then_some(());
    eventually("all are answered", TIMEOUT, answered).await;
    println!("answered after {:?}", began.elapsed());
    assert!(began.elapsed() < Duration::from_secs(10), "{:?}", began.elapsed());
    let calls = env.slack.calls_of("agents.sessions.setStatus").len();
    assert!(calls <= 12, "{calls} calls in {:?}", began.elapsed());
}
