//! Clicks on an agent's own buttons, and feedback on its answers.

use serde_json::{Value, json};
use tests::{
    eventually::eventually,
    provision::new_agent,
    slack::{conversations::Message, webhook::Webhook},
    test_env::{App, SMALL, TIMEOUT, TestEnv, agent_id},
};

async fn start_env() -> (TestEnv, App) {
    let env = TestEnv::start(SMALL).await.expect("servers");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    (env, app)
}

async fn send(env: &TestEnv, app: &App, webhook: &Webhook) {
    assert_eq!(env.send(app, webhook).await.expect("an answer").status, 200);
}

/// Makes the agent answer with this block. Returns its message.
async fn answer(env: &TestEnv, app: &App, channel: &str, block: &Value) -> Message {
    let answer = json!({ "text": "Here", "blocks": [block] });
    let question = format!("json {answer}");
    send(env, app, &Webhook::message(&env.slack, app, channel, "U1", &question)).await;
    let found = async || {
        let messages = env.slack.messages(&app.team, channel);
        messages.into_iter().find(|message| message.text == "Here")
    };
    eventually("the agent answers", TIMEOUT, found).await
}

async fn values(env: &TestEnv) -> Vec<(String, String)> {
    let kept = "select user_id, value from feedback order by id";
    sqlx::query_as(kept).fetch_all(&env.pool).await.expect("opinions")
}

/// A click on a button of an agent's message reaches the agent with message, thread and action. Ids
/// of approval buttons are prefixed.
#[tokio::test]
async fn forwards_click_to_agent() {
    let (env, app) = start_env().await;
    // Agents can't use the id of an approval's button.
    let button = |id: &str| {
        json!({ "type": "button", "action_id": id, "value": "0123456789abcdef0123456789abcdef",
                "text": { "type": "plain_text", "text": "Go" } })
    };
    let elements = [button("refresh"), button("tidegate_approval_0")];
    let block = json!({ "type": "actions", "block_id": "b1", "elements": elements });
    let message = answer(&env, &app, "C1", &block).await;
    assert_eq!(message.blocks[0]["elements"][1]["action_id"], "_tidegate_approval_0");
    for (n, id) in ["refresh", "_tidegate_approval_0"].into_iter().enumerate() {
        let mut action = message.blocks[0]["elements"][n].clone();
        action["block_id"] = "b1".into();
        let click = Webhook::click(&env.slack, &app, "C1", "U2", &message, action);
        send(&env, &app, &click).await;
        assert_eq!(env.wait_for_outcome(&click.dedup_key).await.outcome, "completed");
        let text = format!("I heard a click: {id}");
        env.slack.wait_for_receipt("the answer", |r| r.text() == text).await;
        let asked = env.agent.requests().pop().expect("a question");
        assert_eq!(asked.id, click.dedup_key.as_str());
        let question = &asked.question;
        assert_eq!(
            (&question["type"], &question["trigger"]["kind"], &question["user"], &question["text"]),
            (&"action".into(), &"action".into(), &"U2".into(), &"".into())
        );
        assert_eq!(question["ts"], *message.ts);
        assert_eq!(question["actions"][0]["block_id"], "b1");
        let thread = message.thread_ts.as_deref().expect("a thread");
        assert_eq!(question["thread_ts"], *thread);
        let answers = env.slack.messages(&app.team, "C1");
        let answer = answers.into_iter().find(|message| message.text == text).expect("an answer");
        assert_eq!(answer.thread_ts.as_deref(), Some(thread));
    }
}

/// Each feedback of a person is stored in order and forwarded to the agent.
#[tokio::test]
async fn keeps_and_forwards_feedback() {
    let (env, app) = start_env().await;
    let choice = |text: &str| json!({ "text": { "type": "plain_text", "text": text }, "value": format!("is-{text}") });
    let block = json!({ "type": "context_actions", "elements": [{
        "type": "feedback_buttons", "action_id": "fb", "positive_button": choice("good"),
        "negative_button": choice("bad"),
    }] });
    let message = answer(&env, &app, "D1", &block).await;
    for value in ["is-good", "is-bad"] {
        let action = json!({
            "type": "feedback_buttons", "action_id": "fb", "block_id": "b", "value": value,
        });
        let click = Webhook::click(&env.slack, &app, "D1", "U1", &message, action);
        send(&env, &app, &click).await;
        assert_eq!(env.wait_for_outcome(&click.dedup_key).await.outcome, "completed");
        let question = env.agent.requests().pop().expect("a question").question;
        assert_eq!(
            (&question["type"], &question["ts"]),
            (&"feedback".into(), &message.ts.clone().into())
        );
        assert_eq!(question["actions"][0]["value"], value);
    }
    let kept = [("U1".to_owned(), "is-good".to_owned()), ("U1".into(), "is-bad".into())];
    assert_eq!(values(&env).await, kept);
}

/// A click goes to the agent of the message, although the channel was linked to another agent. If
/// that agent was removed, the person gets a notice.
#[tokio::test]
async fn delivers_to_agent_of_message() {
    let (env, app) = start_env().await;
    let button = json!({ "type": "button", "action_id": "go",
                         "text": { "type": "plain_text", "text": "Go" } });
    let block = json!({ "type": "actions", "elements": [button] });
    let message = answer(&env, &app, "C1", &block).await;
    assert_eq!(message.metadata["event_payload"]["agent"], format!("{}/{}", app.org, agent_id()));
    let other = "other".parse().expect("an id");
    let other = new_agent(&app.org, other, env.agent.url()).expect("an agent");
    env.store.put_agent(&other).await.expect("Postgres");
    sqlx::query("update connections set agent_id = 'other' where id = $1")
        .bind(app.connection.to_string())
        .execute(&env.pool)
        .await
        .expect("another agent");
    let action = message.blocks[0]["elements"][0].clone();
    let click = || Webhook::click(&env.slack, &app, "C1", "U2", &message, action.clone());
    let first = click();
    send(&env, &app, &first).await;
    assert_eq!(env.wait_for_outcome(&first.dedup_key).await.outcome, "completed");
    let agent: String =
        sqlx::query_scalar("select agent_id from delivery_log where dedup_key = $1")
            .bind(first.dedup_key.as_str())
            .fetch_one(&env.pool)
            .await
            .expect("a row");
    assert_eq!(agent, agent_id().as_str());

    sqlx::query("delete from agents where id = $1")
        .bind(agent_id().as_str())
        .execute(&env.pool)
        .await
        .expect("it is removed");
    send(&env, &app, &click()).await;
    let is_notice = |r: &tests::slack::Receipt| r.text().starts_with("The agent of this message");
    env.slack.wait_for_receipt("a notice", is_notice).await;
}
