//! Messages of bound conversations reach their agent once and in order.

use serde_json::json;
use shared::domain::Surface;
use tests::{
    eventually::eventually,
    slack::{unix_now, webhook::Webhook},
    test_env::{App, PAIR, SMALL, TIMEOUT, TestEnv},
};

async fn connect_linked(env: &TestEnv, channel: &str) -> App {
    let app = env.connect().await.expect("a connection");
    let surface = if channel.starts_with('D') { Surface::Dm } else { Surface::Channel };
    let code = env.create_link_code(&app, &[surface]).await.expect("a code");
    let webhook =
        Webhook::command(&env.slack, &app, channel, "U1", "/lobu", &format!("link {code}"));
    env.send(&app, &webhook).await.expect("an answer");
    let reply = env
        .slack
        .wait_for_receipt("the reply to the link code", |receipt| {
            webhook.response_url.ends_with(&receipt.to)
        })
        .await;
    assert!(reply.text().starts_with("Linked."), "{}", reply.text());
    app
}

/// A message in a channel is answered in its thread, with the bot token of its connection.
#[tokio::test]
async fn answers_in_thread() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = connect_linked(&env, "C1").await;
    let ts = format!("{}.000100", unix_now());
    let webhook = Webhook::message_event(&env.slack, &app, "message", "C1", "U1", "hello", &ts);
    env.send(&app, &webhook).await.expect("an answer");
    let answer = env
        .slack
        .wait_for_receipt("the answer", |receipt| receipt.text() == "I heard: hello")
        .await;
    assert_eq!((answer.by.as_str(), answer.to.as_str()), ("chat.postMessage", "C1"));
    assert_eq!(
        (&answer.body["thread_ts"], answer.token.as_deref()),
        (&json!(ts), Some(app.token.as_str()))
    );
    let asked = env.agent.requests();
    assert_eq!((asked.len(), asked[0].id.as_str()), (1, webhook.dedup_key.as_str()));
}

/// A mention, which Slack sends as `app_mention` and as `message` with two event ids, calls the
/// agent once.
#[tokio::test]
async fn calls_agent_once_per_mention() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = connect_linked(&env, "C1").await;
    let ts = format!("{}.000100", unix_now());
    for kind in ["app_mention", "message"] {
        let webhook =
            Webhook::message_event(&env.slack, &app, kind, "C1", "U1", "<@UBOT> hello", &ts);
        assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
        env.wait_for_outcome(&webhook.dedup_key).await;
    }
    assert_eq!(env.stored().await.expect("a count"), 3, "the link command and both events");
    assert_eq!(env.agent.requests().len(), 1);
}

/// Numbers out of the range of `f64` and deep nesting, as in the metadata of a message, cost only
/// their field.
#[tokio::test]
async fn answers_despite_odd_values() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = connect_linked(&env, "C1").await;
    let send_with = async |text: &str, odd: &str| {
        let mut webhook = Webhook::message(&env.slack, &app, "C1", "U1", text);
        let body = String::from_utf8(webhook.body).expect("text");
        let fields = format!(r#"{odd},"channel":"C1""#);
        webhook.body = body.replacen(r#""channel":"C1""#, &fields, 1).into_bytes();
        assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
        webhook
    };
    let metadata = |value: &str| {
        format!(r#""metadata":{{"event_type":"score","event_payload":{{"best":{value}}}}}"#)
    };
    let deep = format!("{}7{}", "[".repeat(500), "]".repeat(500));
    for (text, odd) in [
        ("large", metadata("1e999")),
        ("deep", metadata(&deep)),
        ("blocks", format!(r#""blocks":{deep}"#)),
        ("others", format!(r#""client_msg_id":-1E400,"edited":1e999,"reactions":{deep}"#)),
        (r#"json {"score":1e999,"text":"I heard: an odd answer"}"#, metadata("1")),
    ] {
        let webhook = send_with(text, &odd).await;
        assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "completed", "{text}");
    }
    for text in ["large", "deep", "blocks", "others", "an odd answer"] {
        let expected = format!("I heard: {text}");
        env.slack.wait_for_receipt(text, |receipt| receipt.text() == expected).await;
    }
    assert_eq!(env.agent.requests().len(), 5, "each message reaches the agent once");

    let mut endless = Webhook::message(&env.slack, &app, "C1", "U1", "endless");
    endless.body = vec![b'['; 1 << 20];
    assert_eq!(env.send(&app, &endless).await.expect("an answer").status, 200);
    let dead = eventually("the webhook is a dead letter", TIMEOUT, async || {
        env.dead_letters().await.ok()?.into_iter().next()
    });
    assert_eq!(dead.await.reason, "signed by Slack, but not understood");
    send_with("still here", &metadata("2")).await;
    env.slack.wait_for_receipt("the answer", |r| r.text() == "I heard: still here").await;
}

/// Messages of bots, own messages, edits and hidden messages reach no agent.
#[tokio::test]
async fn ignores_bots() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = connect_linked(&env, "C1").await;
    let ts = format!("{}.000100", unix_now());
    let inner = |extra: serde_json::Value| {
        let mut inner =
            json!({ "type": "message", "channel": "C1", "text": "hi", "ts": ts, "user": "U9" });
        inner
            .as_object_mut()
            .expect("an object")
            .extend(extra.as_object().expect("an object").clone());
        inner
    };
    for extra in [
        json!({ "bot_id": "B1" }),
        json!({ "bot_profile": { "id": "B1", "app_id": "A9", "name": "deploys", "deleted": false } }),
        json!({ "user": app.bot_user }),
        json!({ "subtype": "message_changed" }),
        json!({ "hidden": true }),
    ] {
        let webhook = Webhook::event(&env.slack, &app, "a bot's message", inner(extra.clone()));
        env.send(&app, &webhook).await.expect("an answer");
        assert_eq!(env.wait_for_outcome(&webhook.dedup_key).await.outcome, "ignored", "{extra}");
    }
    assert!(env.agent.requests().is_empty());
}

/// Thirty messages of a conversation are answered in the order in which they were accepted.
#[tokio::test]
async fn answers_in_order_of_acceptance() {
    let env = TestEnv::start(PAIR).await.expect("a test environment");
    let app = connect_linked(&env, "D1").await;
    let texts: Vec<String> = (0..30).map(|n| format!("number {n}")).collect();
    for text in &texts {
        let webhook = Webhook::message(&env.slack, &app, "D1", "U1", text);
        assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
    }
    let answers = eventually("all are answered", TIMEOUT, async || {
        let receipts = env.slack.receipts();
        let answers: Vec<String> = receipts
            .iter()
            .filter_map(|r| r.text().strip_prefix("I heard: ").map(str::to_owned))
            .collect();
        (answers.len() >= texts.len()).then_some(answers)
    })
    .await;
    assert_eq!(answers, texts);
}
