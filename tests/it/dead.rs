//! What can't be handled is kept, with why, and holds nobody up.

use shared::{partition::Partition, stream};
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{SMALL, SOON, World},
};

#[tokio::test]
async fn an_undecodable_envelope_is_dead_with_its_reason_and_stops_nothing() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let js = async_nats::jetstream::new(world.client().clone());
    let subject = stream::subject(Partition::of(app.connection, Some("C1")), app.connection);
    js.publish(subject.clone(), "no envelope".into()).await.expect("sent").await.expect("stored");
    let mut headers = async_nats::HeaderMap::new();
    headers.insert("Tidegate-Schema", "1");
    js.publish_with_headers(subject, headers, "half an envelope".into())
        .await
        .expect("sent")
        .await
        .expect("stored");

    let webhook = Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help");
    world.send(&app, &webhook).await.expect("an answer");
    assert_eq!(world.handled(&webhook.dedupe).await.outcome, "done", "what is behind them goes on");
    let dead = world.store.dead(10).await.expect("a list");
    let found: Vec<_> =
        dead.iter().map(|one| (one.sequence, one.reason.as_str(), one.body.as_slice())).collect();
    assert_eq!(
        found,
        [
            (2, "undecodable envelope: its kind is not one of ours", &b"half an envelope"[..]),
            (1, "undecodable envelope: it has no headers", b"no envelope"),
        ]
    );
    let printed = world.tidegate(&["dead", "list"]).expect("printed");
    assert!(
        printed.contains("it has no headers") && printed.contains(&app.connection.to_string()),
        "{printed}"
    );
}

#[tokio::test]
async fn what_slack_signed_and_nobody_understands_is_stored_and_found_among_the_dead() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    for body in ["{\"type\":\"surprise\"}", "[1]", "not json"] {
        let mut webhook = Webhook::url_verification(&app, "");
        webhook.body = body.into();
        assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200, "{body}");
    }
    let dead = until("all three are dead", SOON, async || {
        let dead = world.store.dead(10).await.ok()?;
        (dead.len() == 3).then_some(dead)
    })
    .await;
    assert!(dead.iter().all(|one| one.reason == "signed by Slack, but not understood"), "{dead:?}");
}
