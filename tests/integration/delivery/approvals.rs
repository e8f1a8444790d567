//! Approvals: questions of agents to people, decided by one click.

use serde_json::{Value, json};
use tests::{
    agent::AgentRequest,
    eventually::eventually,
    slack::{conversations::Message, webhook::Webhook},
    test_env::{App, PAIR, SMALL, Size, TIMEOUT, TestEnv, agent_id},
};

/// People who click at the same time.
const CLICKERS: usize = 64;

async fn start_env(size: Size) -> (TestEnv, App) {
    let env = TestEnv::start(size).await.expect("servers");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    (env, app)
}

/// Sends a message to the agent, which answers with an approval request. Returns the message with
/// the buttons.
async fn ask(env: &TestEnv, app: &App, channel: &str, ask: &Value) -> Message {
    let answer = json!({ "text": "It is built.", "ask": ask });
    let text = format!("json {answer}");
    send(env, app, &Webhook::message(&env.slack, app, channel, "U1", &text)).await;
    wait_for_buttons(env, app, channel).await
}

async fn send(env: &TestEnv, app: &App, webhook: &Webhook) {
    assert_eq!(env.send(app, webhook).await.expect("an answer").status, 200);
}

async fn wait_for_buttons(env: &TestEnv, app: &App, channel: &str) -> Message {
    let found = async || {
        let messages = env.slack.messages(&app.team, channel);
        messages.into_iter().find(|message| !buttons(message).is_empty())
    };
    eventually("the approval request is posted", TIMEOUT, found).await
}

fn buttons(message: &Message) -> Vec<Value> {
    let blocks = message.blocks.as_array().into_iter().flatten();
    let elements = blocks.filter_map(|block| block["elements"].as_array()).flatten();
    elements.filter(|element| element["type"] == "button").cloned().collect()
}

fn click(env: &TestEnv, app: &App, channel: &str, user: &str, on: &Message, n: usize) -> Webhook {
    Webhook::click(&env.slack, app, channel, user, on, buttons(on)[n].clone())
}

/// Returns the ephemeral reply to a click.
async fn reply_to_click(env: &TestEnv, click: &Webhook) -> String {
    let path = click.response_url.rsplit('/').next().unwrap_or_default().to_owned();
    let by_url = |r: &tests::slack::Receipt| r.by == "response_url" && r.to.ends_with(&path);
    let reply = env.slack.wait_for_receipt("the reply to the click", by_url).await;
    assert_eq!(reply.body["response_type"], "ephemeral");
    assert_ne!(reply.body["replace_original"], true);
    reply.text().to_owned()
}

fn decisions(env: &TestEnv) -> Vec<AgentRequest> {
    let mut requests = env.agent.requests();
    requests.retain(|request| request.question["type"] == "approval");
    requests
}

async fn wait_for_rewrite(env: &TestEnv, app: &App, channel: &str, ts: &str) -> Message {
    let found = async || {
        let messages = env.slack.messages(&app.team, channel);
        messages.into_iter().find(|message| message.ts == ts && message.edited)
    };
    eventually("the message is rewritten", TIMEOUT, found).await
}

async fn count(env: &TestEnv, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&env.pool).await.expect("a count")
}

/// The first click decides: the agent gets the decision, the buttons go, and repeats and texts
/// change nothing.
#[tokio::test]
async fn decides_by_click() {
    let (env, app) = start_env(SMALL).await;
    let options = json!([{ "id": "yes", "label": "Yes <b>", "style": "primary" }, { "id": "no" }]);
    let question = json!({ "id": "deploy-7", "prompt": "Deploy? <!channel>", "options": options });
    let asked = ask(&env, &app, "C1", &question).await;
    assert_eq!(asked.text, "Deploy? @channel");
    let first = &env.agent.requests()[0].question;
    assert_eq!(asked.thread_ts.as_deref(), first["ts"].as_str());
    let labels: Vec<Value> = buttons(&asked).iter().map(|b| b["text"]["text"].clone()).collect();
    assert_eq!(labels, ["Yes <b>", "no"]);

    let yes = click(&env, &app, "C1", "U1", &asked, 0);
    send(&env, &app, &yes).await;
    assert_eq!(env.wait_for_outcome(&yes.dedup_key).await.outcome, "completed");
    env.slack.wait_for_receipt("the answer", |r| r.text() == "I heard: yes by U1").await;
    let of_run = &decisions(&env)[0].question;
    let decision =
        json!({ "id": "deploy-7", "run": first["run"], "decision": "yes", "user": "U1" });
    assert_eq!(of_run["approval"], decision);
    assert_eq!(
        (&of_run["trigger"]["kind"], &of_run["thread_ts"]),
        (&"approval".into(), &first["ts"])
    );
    assert_ne!(of_run["run"], first["run"]);
    let message = wait_for_rewrite(&env, &app, "C1", &asked.ts).await;
    let text = message.blocks.to_string();
    assert!(buttons(&message).is_empty() && text.contains("*Yes &lt;b&gt;* by <@U1>"), "{text}");
    let audited = "select count(*) from audit_log where action = 'approval.decide'
                      and actor like 'slack-user:%/U1' and after ->> 'decision' = 'yes'";
    assert_eq!(count(&env, audited).await, 1);

    // A redelivery, a text and an old button decide nothing.
    send(&env, &app, &yes).await;
    send(&env, &app, &Webhook::message(&env.slack, &app, "C1", "U1", "yes")).await;
    let no = click(&env, &app, "C1", "U1", &asked, 1);
    send(&env, &app, &no).await;
    assert!(reply_to_click(&env, &no).await.starts_with("*Yes &lt;b&gt;* by <@U1>"));
    assert_eq!(decisions(&env).len(), 1);
    let clear = "select count(*) from approvals where content like '%Deploy%'";
    assert_eq!(count(&env, clear).await, 0, "the question is stored in clear text");
}

/// Of 64 clicks at the same time one, of an allowed person, decides. The others get a notice.
#[tokio::test(flavor = "multi_thread")]
async fn decides_by_one_of_64_clicks() {
    let (env, app) = start_env(PAIR).await;
    let people: Vec<String> = (0..50).map(|n| format!("U{n}")).collect();
    let question = json!({ "id": "a", "prompt": "Deploy?", "allowed": people });
    let asked = ask(&env, &app, "C1", &question).await;
    // The last 14 people are not allowed to decide.
    let clicks: Vec<Webhook> =
        (0..CLICKERS).map(|n| click(&env, &app, "C1", &format!("U{n}"), &asked, n % 2)).collect();
    let sent = clicks.iter().map(|click| send(&env, &app, click));
    futures_util::future::join_all(sent).await;
    let mut replies = Vec::new();
    let decided = async || decisions(&env).pop();
    let decided = eventually("a decision", TIMEOUT, decided).await;
    let by = decided.question["user"].as_str().expect("a person").to_owned();
    for (n, click) in clicks.iter().enumerate().filter(|(n, _)| format!("U{n}") != by) {
        replies.push((n, reply_to_click(&env, click).await));
    }
    assert_eq!(replies.len(), CLICKERS - 1);
    let denied = |reply: &str| reply == "You can't decide this request.";
    let named = format!("* by <@{by}>, ");
    assert!(replies.iter().all(|(n, reply)| reply.contains(&named) || denied(reply) && *n >= 50));
    let late: std::collections::HashSet<&String> =
        replies.iter().map(|(_, reply)| reply).filter(|reply| !denied(reply)).collect();
    assert_eq!(late.len(), 1, "late clicks get the same reply: {late:?}");
    assert_eq!(decisions(&env).len(), 1);
    assert_eq!(count(&env, "select count(*) from approvals where state = 'decided'").await, 1);
    assert_eq!(
        count(&env, "select count(*) from audit_log where action = 'approval.decide'").await,
        1
    );
}

/// Clicks of people who are not allowed, in another channel, and with an invented id decide
/// nothing.
#[tokio::test]
async fn refuses_foreign_clicks() {
    let (env, app) = start_env(SMALL).await;
    let question = json!({ "id": "a", "prompt": "Deploy?", "allowed": ["U7"] });
    let asked = ask(&env, &app, "C1", &question).await;
    let foreign = click(&env, &app, "C1", "U1", &asked, 0);
    send(&env, &app, &foreign).await;
    assert_eq!(reply_to_click(&env, &foreign).await, "You can't decide this request.");
    let in_other_channel = click(&env, &app, "C2", "U7", &asked, 0);
    send(&env, &app, &in_other_channel).await;
    assert_eq!(reply_to_click(&env, &in_other_channel).await, "This request no longer exists.");
    let mut forged = buttons(&asked)[0].clone();
    forged["value"] = "0123456789abcdef0123456789abcdef".into();
    let forged = Webhook::click(&env.slack, &app, "C1", "U7", &asked, forged);
    send(&env, &app, &forged).await;
    assert_eq!(reply_to_click(&env, &forged).await, "This request no longer exists.");
    assert_eq!(count(&env, "select count(*) from approvals where state = 'open'").await, 1);
    assert!(decisions(&env).is_empty());
    let allowed = click(&env, &app, "C1", "U7", &asked, 1);
    send(&env, &app, &allowed).await;
    env.slack.wait_for_receipt("the answer", |r| r.text() == "I heard: deny by U7").await;
}

/// After its time a request without a decision loses its buttons, the agent gets the decision
/// `expired`, and a click gets a notice.
#[tokio::test]
async fn expires_undecided() {
    let (env, app) = start_env(SMALL).await;
    let question = json!({ "id": "a", "prompt": "Deploy?", "expires": 2 });
    let asked = ask(&env, &app, "D1", &question).await;
    assert_eq!(asked.thread_ts, None);
    let message = wait_for_rewrite(&env, &app, "D1", &asked.ts).await;
    let expired = "No decision was made in time. This request has expired.";
    assert!(buttons(&message).is_empty() && message.blocks.to_string().contains(expired));
    let late = click(&env, &app, "D1", "U1", &asked, 0);
    send(&env, &app, &late).await;
    assert_eq!(reply_to_click(&env, &late).await, expired);
    env.slack.wait_for_receipt("the answer", |r| r.text() == "I heard: expired by U1").await;
    let first = &env.agent.requests()[0].question;
    let told = decisions(&env);
    let decision = json!({ "id": "a", "run": first["run"], "decision": "expired", "user": null });
    assert_eq!((told.len(), &told[0].question["approval"]), (1, &decision));
    assert_eq!(told[0].question["ts"], *asked.ts);
    assert_eq!(count(&env, "select count(*) from approvals where state = 'expired'").await, 1);
}

/// A streamed answer that ends with an approval request posts it once, although the worker is
/// killed while the agent streams.
#[tokio::test]
async fn asks_once_despite_kill() {
    let (env, app) = start_env(SMALL).await;
    let text = "stream:20:50:8 asks please";
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", text);
    send(&env, &app, &webhook).await;
    let begun = async || (!env.slack.calls_of("chat.startStream").is_empty()).then_some(());
    eventually("the answer begins", TIMEOUT, begun).await;
    env.workers[0].process.kill();
    env.workers[0].process.restart().expect("it starts again");
    let asked = wait_for_buttons(&env, &app, "C1").await;
    let outcome = env.wait_for_outcome(&webhook.dedup_key).await.outcome;
    assert_eq!((&*asked.text, &*outcome), ("Deploy?", "asked"));
    let stopped = env.slack.calls_of("chat.stopStream").pop().expect("it ends");
    assert_eq!(stopped.args["session_status"], "suspended");
    let first = asked.thread_ts.clone();
    assert_eq!(first.as_deref(), env.agent.requests()[0].question["ts"].as_str());
    let yes = click(&env, &app, "C1", "U1", &asked, 0);
    send(&env, &app, &yes).await;
    env.slack.wait_for_receipt("the answer", |r| r.text() == "I heard: approve by U1").await;
    let messages = env.slack.messages(&app.team, "C1");
    assert_eq!(messages.iter().filter(|message| message.text == "Deploy?").count(), 1);
    assert_eq!(count(&env, "select count(*) from approvals").await, 1);
}

/// A request whose contents Postgres rejects makes a dead letter. The agent is asked once.
#[tokio::test]
async fn gives_up_rejected_request() {
    let (env, app) = start_env(SMALL).await;
    sqlx::query("alter table approvals add constraint no_x check (ask_id <> 'x')")
        .execute(&env.pool)
        .await
        .expect("a constraint");
    let answer = json!({ "ask": { "id": "x", "prompt": "Deploy?" } });
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", &format!("json {answer}"));
    send(&env, &app, &webhook).await;
    assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "dead_letter");
    let dead = env.dead_letters().await.expect("a list");
    assert_eq!(dead[0].reason, "Postgres rejects the effects");
    assert_eq!(env.agent.requests().len(), 1);
    env.wait_for_log("failed to record attempt outcome with its change").await.expect("a log line");
}
