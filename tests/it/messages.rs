//! What is said in a linked conversation reaches its agent, once and in order.

use serde_json::json;
use shared::types::Surface;
use tests::{
    slack::{unix_now, webhook::Webhook},
    until::until,
    world::{App, PAIR, SMALL, SOON, World},
};

async fn linked(world: &World, channel: &str) -> App {
    let app = world.connect().await.expect("a connection");
    let surface = if channel.starts_with('D') { Surface::Dm } else { Surface::Channel };
    let code = world.mint(&app, &[surface]).await.expect("a code");
    let webhook =
        Webhook::command(&world.slack, &app, channel, "U1", "/lobu", &format!("link {code}"));
    world.send(&app, &webhook).await.expect("an answer");
    let said =
        world.slack.told("linked", |receipt| webhook.response_url.ends_with(&receipt.to)).await;
    assert!(said.text().starts_with("Linked."), "{}", said.text());
    app
}

#[tokio::test]
async fn a_message_in_a_linked_channel_is_answered_in_its_thread() {
    let world = World::start(SMALL).await.expect("a world");
    let app = linked(&world, "C1").await;
    let ts = format!("{}.000100", unix_now());
    let webhook = Webhook::said(&world.slack, &app, "message", "C1", "U1", "hello", &ts);
    world.send(&app, &webhook).await.expect("an answer");
    let said = world.slack.told("the answer", |receipt| receipt.text() == "I heard: hello").await;
    assert_eq!((said.by.as_str(), said.to.as_str()), ("chat.postMessage", "C1"));
    assert_eq!(
        (&said.body["thread_ts"], said.token.as_deref()),
        (&json!(ts), Some(app.token.as_str()))
    );
    let asked = world.agent.asked();
    assert_eq!((asked.len(), asked[0].id.as_str()), (1, webhook.dedupe.as_str()));
}

/// Slack tells one mention as `app_mention` and as `message`, with an event id each.
#[tokio::test]
async fn one_mention_told_twice_asks_the_agent_once() {
    let world = World::start(SMALL).await.expect("a world");
    let app = linked(&world, "C1").await;
    let ts = format!("{}.000100", unix_now());
    for kind in ["app_mention", "message"] {
        let webhook = Webhook::said(&world.slack, &app, kind, "C1", "U1", "<@UBOT> hello", &ts);
        assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200);
        world.handled(&webhook.dedupe).await;
    }
    assert_eq!(world.stored().await.expect("a count"), 3, "the link, and both of them");
    assert_eq!(world.agent.asked().len(), 1);
}

#[tokio::test]
async fn what_a_bot_says_asks_no_agent() {
    let world = World::start(SMALL).await.expect("a world");
    let app = linked(&world, "C1").await;
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
        json!({ "user": app.bot_user }),
        json!({ "subtype": "message_changed" }),
        json!({ "hidden": true }),
    ] {
        let webhook = Webhook::event(&world.slack, &app, "a bot's message", inner(extra.clone()));
        world.send(&app, &webhook).await.expect("an answer");
        assert_eq!(world.handled(&webhook.dedupe).await.outcome, "ignored", "{extra}");
    }
    assert!(world.agent.asked().is_empty());
}

#[tokio::test]
async fn a_conversation_is_answered_in_the_order_in_which_it_was_accepted() {
    let world = World::start(PAIR).await.expect("a world");
    let app = linked(&world, "D1").await;
    let said: Vec<String> = (0..30).map(|n| format!("number {n}")).collect();
    for text in &said {
        let webhook = Webhook::message(&world.slack, &app, "D1", "U1", text);
        assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200);
    }
    let answers = until("all are answered", SOON, async || {
        let receipts = world.slack.receipts();
        let answers: Vec<String> = receipts
            .iter()
            .filter_map(|r| r.text().strip_prefix("I heard: ").map(str::to_owned))
            .collect();
        (answers.len() >= said.len()).then_some(answers)
    })
    .await;
    assert_eq!(answers, said);
}
