//! A webhook that Slack sends again is not handled again.

use std::time::Duration;
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{PAIR, SMALL, SOON, World},
};

#[tokio::test]
async fn a_webhook_delivered_three_times_is_handled_once() {
    let world = World::start(PAIR).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let webhook = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help");
    let sent = [world.send(&app, &webhook), world.send(&app, &webhook), world.send(&app, &webhook)];
    for answer in futures_util::future::join_all(sent).await {
        assert_eq!(answer.expect("an answer").status, 200);
    }
    assert_eq!(world.stored().await.expect("a count"), 1);
    // What is behind it in the same conversation is said after everything that is said of it.
    let after = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help");
    world.send(&app, &after).await.expect("an answer");
    world.slack.told("the one after", |receipt| after.response_url.ends_with(&receipt.to)).await;
    let receipts = world.slack.receipts();
    let said =
        receipts.iter().filter(|receipt| webhook.response_url.ends_with(&receipt.to)).count();
    assert_eq!(said, 1);
}

/// JetStream forgets a dedupe key after its window; Slack may send an event again for a day.
#[tokio::test]
async fn a_copy_that_comes_after_jetstreams_window_has_no_second_effect() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let window = Duration::from_millis(100);
    world.change_stream(|it| it.duplicate_window = window).await.expect("a short window");

    let webhook = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help");
    world.send(&app, &webhook).await.expect("an answer");
    until("JetStream takes the copy for new", SOON, async || {
        world.send(&app, &webhook).await.ok()?;
        (world.stored().await.ok()? >= 2).then_some(())
    })
    .await;
    let after = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help");
    world.send(&app, &after).await.expect("an answer");
    world.slack.told("the one after", |receipt| after.response_url.ends_with(&receipt.to)).await;
    let receipts = world.slack.receipts();
    let said =
        receipts.iter().filter(|receipt| webhook.response_url.ends_with(&receipt.to)).count();
    assert_eq!(said, 1);
}
