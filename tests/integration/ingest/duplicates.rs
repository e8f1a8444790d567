//! Copies of a webhook, which are processed once.

use std::time::Duration;
use tests::{
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{PAIR, SMALL, TIMEOUT, TestEnv},
};

/// Three copies of a webhook that are sent at the same time are stored and answered once.
#[tokio::test]
async fn handles_copies_once() {
    let env = TestEnv::start(PAIR).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let webhook = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "help");
    let sent = [env.send(&app, &webhook), env.send(&app, &webhook), env.send(&app, &webhook)];
    for answer in futures_util::future::join_all(sent).await {
        assert_eq!(answer.expect("an answer").status, 200);
    }
    assert_eq!(env.stored().await.expect("a count"), 1);
    // A later message of the conversation is answered after all replies to this one.
    let after = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "help");
    env.send(&app, &after).await.expect("an answer");
    env.slack
        .wait_for_receipt("the reply to the later command", |receipt| {
            after.response_url.ends_with(&receipt.to)
        })
        .await;
    let receipts = env.slack.receipts();
    let replies =
        receipts.iter().filter(|receipt| webhook.response_url.ends_with(&receipt.to)).count();
    assert_eq!(replies, 1);
}

/// A copy that comes after the deduplication window of JetStream is stored but not processed: Slack
/// may resend an event for a day.
#[tokio::test]
async fn ignores_copy_after_dedup_window() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let window = Duration::from_millis(100);
    env.change_stream(|it| it.duplicate_window = window).await.expect("a short window");

    let webhook = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "help");
    env.send(&app, &webhook).await.expect("an answer");
    eventually("JetStream stores the copy", TIMEOUT, async || {
        env.send(&app, &webhook).await.ok()?;
        (env.stored().await.ok()? >= 2).then_some(())
    })
    .await;
    let after = Webhook::command(&env.slack, &app, "C1", "U1", "/lobu", "help");
    env.send(&app, &after).await.expect("an answer");
    env.slack
        .wait_for_receipt("the reply to the later command", |receipt| {
            after.response_url.ends_with(&receipt.to)
        })
        .await;
    let receipts = env.slack.receipts();
    let replies =
        receipts.iter().filter(|receipt| webhook.response_url.ends_with(&receipt.to)).count();
    assert_eq!(replies, 1);
}
