//! Limit of one person's questions to an agent.

use serde_json::Value;
use std::time::Duration;
use tests::{
    eventually::eventually,
    provision::new_agent,
    slack::{unix_now, webhook::Webhook},
    test_env::{App, SMALL, TIMEOUT, TestEnv, agent_id},
};

const MAX_PER_USER: u32 = 3;
/// Seconds that a test needs within one minute.
const NEEDED: u64 = 40;

/// Connects an app whose agent takes three questions of a person in a minute.
async fn connect(env: &TestEnv) -> App {
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let mut agent = new_agent(&app.org, agent_id(), env.agent.url()).expect("an agent");
    agent.max_per_user = MAX_PER_USER;
    env.store.put_agent(&agent).await.expect("Postgres");
    app
}

/// Waits until enough of the current minute is left.
async fn wait_for_minute() {
    let left = 60 - unix_now() % 60;
    if left < NEEDED {
        tokio::time::sleep(Duration::from_secs(left)).await;
    }
}

async fn ask(env: &TestEnv, app: &App, channel: &str, user: &str, text: &str) {
    let webhook = Webhook::message(&env.slack, app, channel, user, text);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
}

/// Waits until these texts reached the agent, in any order.
async fn wait_for_texts(env: &TestEnv, expected: &[&str]) {
    let texts = || {
        let asked = env.agent.requests().into_iter().map(|asked| asked.question["text"].clone());
        let mut texts: Vec<String> =
            asked.filter_map(|text| text.as_str().map(str::to_owned)).collect();
        texts.sort();
        texts
    };
    eventually(&format!("the agent gets {expected:?}"), TIMEOUT, async || {
        (texts() == expected).then_some(())
    })
    .await;
}

/// Returns person and reason of the ignored webhooks once there are `count`.
async fn ignored(env: &TestEnv, app: &App, count: usize) -> Vec<(String, String)> {
    eventually(&format!("{count} are ignored"), TIMEOUT, async || {
        let sql = "select user_id, reason from ignored_webhooks where connection_id = $1";
        let rows: Vec<(String, String)> =
            sqlx::query_as(sql).bind(app.connection.to_string()).fetch_all(&env.pool).await.ok()?;
        (rows.len() == count).then_some(rows)
    })
    .await
}

fn notices(env: &TestEnv) -> Vec<Value> {
    let all = env.slack.calls_of("chat.postEphemeral").into_iter().map(|call| call.args);
    all.filter(|args| args["text"].as_str().unwrap_or_default().starts_with("The limit of 3 "))
        .collect()
}

/// A person over the limit gets one notice and no answers until the next minute. Other people and
/// commands are not limited.
#[tokio::test]
async fn limits_person_with_one_notice() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = connect(&env).await;
    wait_for_minute().await;
    for n in 1..=6 {
        ask(&env, &app, "D1", "U1", &format!("one {n}")).await;
    }
    ask(&env, &app, "D2", "U2", "two 1").await;
    wait_for_texts(&env, &["one 1", "one 2", "one 3", "two 1"]).await;
    let rows = ignored(&env, &app, 3).await;
    assert!(rows.iter().all(|row| *row == ("U1".into(), "too_many_questions".into())), "{rows:?}");
    let is_notice = |r: &tests::slack::Receipt| r.text().starts_with("The limit of 3 ");
    env.slack.wait_for_receipt("the notice about the limit", is_notice).await;

    let status = Webhook::command(&env.slack, &app, "D1", "U1", "/lobu", "status");
    env.send(&app, &status).await.expect("an answer");
    let is_reply = |r: &tests::slack::Receipt| status.response_url.ends_with(&r.to);
    env.slack.wait_for_receipt("the reply to the command", is_reply).await;
    let notices = notices(&env);
    assert_eq!(notices.len(), 1, "{notices:?}");
    assert_eq!(notices[0]["user"], "U1");

    let past = "update user_questions set minute = minute - 1";
    sqlx::query(past).execute(&env.pool).await.expect("Postgres");
    ask(&env, &app, "D1", "U1", "one 7").await;
    wait_for_texts(&env, &["one 1", "one 2", "one 3", "one 7", "two 1"]).await;
}

/// The limit counts a person's questions in all partitions of a connection.
#[tokio::test]
async fn counts_questions_of_all_channels() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = connect(&env).await;
    wait_for_minute().await;
    for n in 0..8 {
        let text = format!("message {n}");
        let webhook = Webhook::message(&env.slack, &app, &format!("C{n}"), "U1", &text);
        assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
        // A partition does not see what another one decides at the same time.
        if n < MAX_PER_USER as usize {
            env.wait_for_outcome(&webhook.dedup_key).await;
        }
    }
    wait_for_texts(&env, &["message 0", "message 1", "message 2"]).await;
    assert_eq!(ignored(&env, &app, 5).await.len(), 5);
    let partitions = "select count(distinct partition) from ignored_webhooks";
    let partitions: i64 = sqlx::query_scalar(partitions).fetch_one(&env.pool).await.expect("rows");
    assert!(partitions > 1, "the channels are in one partition");
}
