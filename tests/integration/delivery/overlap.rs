//! Edits, and messages that arrive while an earlier one is answered.

use serde_json::{Value, json};
use shared::{
    domain::{AgentPolicies, EditPolicy, OverlapPolicy},
    store::NewAgent,
};
use std::time::Duration;
use tests::{
    agent::AgentRequest,
    eventually::eventually,
    provision::new_agent,
    slack::webhook::Webhook,
    test_env::{App, PAIR, SMALL, Size, TIMEOUT, TestEnv, agent_id},
};

async fn start_env(size: Size, edits: EditPolicy, overlap: OverlapPolicy) -> (TestEnv, App) {
    let mut env = TestEnv::without_processes(size).await.expect("servers");
    let app = start_processes(&mut env, edits, overlap).await;
    (env, app)
}

/// Starts the processes and connects an agent with these policies.
async fn start_processes(env: &mut TestEnv, edits: EditPolicy, overlap: OverlapPolicy) -> App {
    env.set("TIDEGATE_SLACK_APPEND_MIN_INTERVAL", "12ms");
    env.start_processes().await.expect("processes");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let agent = new_agent(&app.org, agent_id(), env.agent.url()).expect("an agent");
    let policies = AgentPolicies { edits, overlap };
    env.store.put_agent(&NewAgent { policies, ..agent }).await.expect("Postgres");
    app
}

async fn ask(env: &TestEnv, app: &App, channel: &str, user: &str, text: &str) -> (Webhook, String) {
    let ts = env.slack.ts();
    let webhook = Webhook::message_event(&env.slack, app, "message", channel, user, text, &ts);
    send(env, app, &webhook).await;
    (webhook, ts)
}

async fn send(env: &TestEnv, app: &App, webhook: &Webhook) {
    assert_eq!(env.send(app, webhook).await.expect("an answer").status, 200);
}

async fn wait_for_questions(env: &TestEnv, count: usize) -> Vec<AgentRequest> {
    let asked = async || Some(env.agent.requests()).filter(|asked| asked.len() >= count);
    eventually("the agent is asked", TIMEOUT, asked).await
}

fn edit(env: &TestEnv, app: &App, ts: &str, before: &str, after: &str) -> Webhook {
    let message = |text: &str| json!({ "type": "message", "user": "U1", "text": text, "ts": ts });
    let now = env.slack.ts();
    let inner = json!({
        "type": "message", "subtype": "message_changed", "hidden": true, "channel": "D1",
        "channel_type": "im", "ts": now, "event_ts": now, "message": message(after),
        "previous_message": message(before),
    });
    Webhook::event(&env.slack, app, "an edit", inner)
}

async fn outcome(env: &TestEnv, webhook: &Webhook) -> String {
    env.wait_for_outcome(&webhook.dedup_key).await.outcome
}

/// With `edits = rerun` an edit replaces a question whose answer has not begun, also one that
/// waits. Later edits change nothing.
#[tokio::test]
async fn replaces_question_on_edit() {
    let (env, app) = start_env(SMALL, EditPolicy::Rerun, OverlapPolicy::Queue).await;
    let (question, ts) = ask(&env, &app, "D1", "U1", "slow:1500 old").await;
    let (second, second_ts) = ask(&env, &app, "D1", "U1", "slow:1500 older").await;
    wait_for_questions(&env, 1).await;
    let edits = [
        edit(&env, &app, &ts, "slow:1500 old", "newer"),
        edit(&env, &app, &ts, "newer", "newest"),
        edit(&env, &app, &second_ts, "slow:1500 older", "other"),
    ];
    for edit in &edits {
        send(&env, &app, edit).await;
    }
    for (webhook, expected) in [
        (&question, "edited"),
        (&second, "edited"),
        (&edits[0], "edited"),
        (&edits[1], "completed"),
        (&edits[2], "completed"),
    ] {
        assert_eq!(outcome(&env, webhook).await, expected, "{}", webhook.what);
    }
    env.slack.wait_for_receipt("the last answer", |r| r.text() == "I heard: other").await;
    let texts: Vec<String> = env.slack.receipts().iter().map(|r| r.text().to_owned()).collect();
    assert_eq!(texts, ["I heard: newest", "I heard: other"]);
    let asked = env.agent.requests();
    let newest = asked.iter().find(|asked| asked.question["text"] == "newest").expect("asked");
    let question = &newest.question;
    assert_eq!((&question["trigger"]["kind"], &question["ts"]), (&"edit".into(), &ts.into()));
    assert_eq!((&question["type"], &question["user"]), (&"message".into(), &"U1".into()));

    // The question is answered: another edit changes nothing, nor does one of an unknown message.
    send(&env, &app, &edit(&env, &app, &second_ts, "other", "again")).await;
    send(&env, &app, &edit(&env, &app, "1.1", "x", "y")).await;
    let (last, _) = ask(&env, &app, "D1", "U1", "bye").await;
    assert_eq!(outcome(&env, &last).await, "completed");
    assert_eq!(env.agent.requests().len(), asked.len() + 1);
}

/// An edit does not change a question whose streamed answer has begun.
#[tokio::test]
async fn keeps_begun_answer_on_edit() {
    let (env, app) = start_env(SMALL, EditPolicy::Rerun, OverlapPolicy::Queue).await;
    let (question, ts) = ask(&env, &app, "D1", "U1", "stream:40:50:8 please").await;
    let begun = async || (!env.slack.calls_of("chat.startStream").is_empty()).then_some(());
    eventually("the answer begins", TIMEOUT, begun).await;
    send(&env, &app, &edit(&env, &app, &ts, "stream:40:50:8 please", "never mind")).await;
    let (last, _) = ask(&env, &app, "D1", "U1", "bye").await;
    assert_eq!(outcome(&env, &question).await, "completed");
    assert_eq!(outcome(&env, &last).await, "completed");
    assert_eq!(env.agent.requests().len(), 2);
}

fn parts(question: &Value) -> Vec<(String, String, String)> {
    let text = |part: &Value, name: &str| part[name].as_str().unwrap_or_default().to_owned();
    let parts = question["parts"].as_array().into_iter().flatten();
    parts.map(|part| (text(part, "user"), text(part, "ts"), text(part, "text"))).collect()
}

/// With `overlap = merge` waiting messages become one question, with authors and order, also in
/// repeated attempts.
#[tokio::test]
async fn merges_waiting_messages() {
    let (env, app) = start_env(PAIR, EditPolicy::Ignore, OverlapPolicy::Merge).await;
    let (first, _) = ask(&env, &app, "D1", "U1", "slow:1500 first").await;
    wait_for_questions(&env, 1).await;
    let (second, second_ts) = ask(&env, &app, "D1", "U1", "fail:2 second").await;
    let (third, third_ts) = ask(&env, &app, "D1", "U2", "third").await;
    let (fourth, fourth_ts) = ask(&env, &app, "D1", "U1", "fourth").await;
    assert_eq!(outcome(&env, &first).await, "completed");
    assert_eq!(outcome(&env, &second).await, "completed");
    for merged in [&third, &fourth] {
        assert_eq!(outcome(&env, merged).await, "merged");
    }
    let text = "I heard: fail:2 second\nthird\nfourth";
    env.slack.wait_for_receipt("one answer", |r| r.text() == text).await;
    let asked = env.agent.requests();
    // The failed attempts repeat the same question.
    assert_eq!(asked.len(), 4);
    assert!(parts(&asked[0].question).is_empty());
    for request in &asked[1..] {
        let question = &request.question;
        let part = |user: &str, ts: &str, text: &str| -> (String, String, String) {
            (user.into(), ts.into(), text.into())
        };
        assert_eq!(
            parts(question),
            [
                part("U1", &second_ts, "fail:2 second"),
                part("U2", &third_ts, "third"),
                part("U1", &fourth_ts, "fourth"),
            ]
        );
        assert_eq!(
            (&question["trigger"]["kind"], &question["trigger"]["ts"]),
            (&"merge".into(), &fourth_ts.clone().into())
        );
        assert_eq!(request.id, asked[1].id);
    }
    let (last, _) = ask(&env, &app, "D1", "U1", "bye").await;
    assert_eq!(outcome(&env, &last).await, "completed");
    assert_eq!(env.agent.requests().len(), 5);
    let left: i64 = sqlx::query_scalar("select count(*) from deliveries")
        .fetch_one(&env.pool)
        .await
        .expect("a count");
    assert_eq!(left, 0);
}

/// With `overlap = interrupt` a new message ends the run of its conversation, and no other one.
#[tokio::test]
async fn interrupts_run_on_message() {
    let (env, app) = start_env(SMALL, EditPolicy::Ignore, OverlapPolicy::Interrupt).await;
    let (long, _) = ask(&env, &app, "D1", "U1", "stream:600:100:8 please").await;
    let (other, _) = ask(&env, &app, "C1", "U1", "stream:40:50:8 please").await;
    let begun = async || (env.slack.calls_of("chat.startStream").len() >= 2).then_some(());
    eventually("the answers begin", TIMEOUT, begun).await;
    let (next, _) = ask(&env, &app, "D1", "U1", "hello").await;
    assert_eq!(outcome(&env, &long).await, "interrupted");
    assert_eq!(outcome(&env, &next).await, "completed");
    env.slack.wait_for_receipt("the next answer", |r| r.text() == "I heard: hello").await;
    let cancels = env.agent.cancels();
    assert_eq!((cancels.len(), &*cancels[0].reason), (1, "interrupt"));
    assert_eq!(outcome(&env, &other).await, "completed", "another conversation");
}

/// A message with `overlap = interrupt`, and an edit with `edits = rerun`, cancel a call that the
/// agent has not answered.
#[tokio::test]
async fn cancels_unanswered_call() {
    let (env, app) = start_env(SMALL, EditPolicy::Rerun, OverlapPolicy::Interrupt).await;
    let (question, ts) = ask(&env, &app, "D1", "U1", "slow:60000 old").await;
    wait_for_questions(&env, 1).await;
    let edit = edit(&env, &app, &ts, "slow:60000 old", "slow:60000 new");
    send(&env, &app, &edit).await;
    assert_eq!(outcome(&env, &question).await, "edited");
    wait_for_questions(&env, 2).await;
    let (next, _) = ask(&env, &app, "D1", "U1", "hello").await;
    assert_eq!(outcome(&env, &edit).await, "interrupted");
    assert_eq!(outcome(&env, &next).await, "completed");
    let (asked, cancels) = (env.agent.requests(), env.agent.cancels());
    let reasons: Vec<&str> = cancels.iter().map(|cancel| &*cancel.reason).collect();
    assert_eq!(reasons, ["edit", "interrupt"]);
    assert_eq!(asked[0].question["run"], *cancels[0].run);
    let closed = async || (env.agent.running() == 0).then_some(());
    eventually("the calls end", TIMEOUT, closed).await;
}

/// A merged question that the worker asked before it stopped is asked again with the same id and
/// messages, although more messages wait.
#[tokio::test]
async fn keeps_merged_question_over_restart() {
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    env.set("TIDEGATE_SHUTDOWN_GRACE_PERIOD", "1s");
    let app = start_processes(&mut env, EditPolicy::Ignore, OverlapPolicy::Merge).await;
    let (first, _) = ask(&env, &app, "D1", "U1", "slow:1500 first").await;
    wait_for_questions(&env, 1).await;
    ask(&env, &app, "D1", "U1", "slow:5000 second").await;
    let (third, _) = ask(&env, &app, "D1", "U1", "third").await;
    assert_eq!(outcome(&env, &first).await, "completed");
    wait_for_questions(&env, 2).await;
    let (fourth, _) = ask(&env, &app, "D1", "U1", "fourth").await;
    let process = &env.workers[0].process;
    process.terminate();
    process.wait(Duration::from_secs(20)).await.expect("it ends");
    process.restart().expect("it starts again");
    let asked = wait_for_questions(&env, 3).await;
    assert_eq!(asked[1].question["parts"].as_array().map(Vec::len), Some(2));
    assert_eq!((&asked[1].id, &asked[1].question), (&asked[2].id, &asked[2].question));
    assert_eq!(outcome(&env, &third).await, "merged");
    assert_eq!(outcome(&env, &fourth).await, "completed");
}
