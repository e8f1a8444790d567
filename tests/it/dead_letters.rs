//! What can't be handled is kept, with why, and holds nobody up.

use shared::{partition::Partition, store::DeadLetterFilter, stream, types::ConnectionId};
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{SMALL, SOON, World, agent_id},
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
    assert_eq!(
        world.handled(&webhook.dedupe).await.outcome,
        "command",
        "what is behind them goes on"
    );
    let dead = world.dead_letters().await.expect("a list");
    let found: Vec<_> =
        dead.iter().map(|one| (one.sequence, one.reason.as_str(), one.body.as_slice())).collect();
    assert_eq!(
        found,
        [
            (2, "undecodable envelope: its kind is not one of ours", &b"half an envelope"[..]),
            (1, "undecodable envelope: it has no headers", b"no envelope"),
        ]
    );
    let printed = world.tidegate(&["dead-letters", "list"]).expect("printed");
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
        let dead = world.dead_letters().await.ok()?;
        (dead.len() == 3).then_some(dead)
    })
    .await;
    assert!(dead.iter().all(|one| one.reason == "signed by Slack, but not understood"), "{dead:?}");
}

#[tokio::test]
async fn one_whose_bytes_can_not_be_opened_is_listed_and_holds_up_no_other() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    for n in 0..3 {
        let mut webhook = Webhook::url_verification(&app, "");
        webhook.body = format!("[{n}]").into();
        assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200);
    }
    let dead = until("all three are dead", SOON, async || {
        let dead = world.dead_letters().await.ok()?;
        (dead.len() == 3).then_some(dead)
    })
    .await;
    let damaged = dead.iter().map(|one| one.id).min().expect("three");
    let damage =
        sqlx::query("update dead_letters set payload = 'nobody sealed this' where id = $1");
    damage.bind(damaged).execute(&world.pool).await.expect("damaged");

    let listed = world.tidegate(&["dead-letters", "list"]).expect("printed");
    assert_eq!(listed.matches("not understood").count(), 3, "{listed}");
    let shown = world.tidegate(&["dead-letters", "show", &damaged.to_string()]).expect("printed");
    assert!(shown.contains("failed to open"), "{shown}");

    let tries = |id: i64| dead.iter().find(|one| one.id == id).map_or(0, |one| one.attempts);
    let asked =
        world.store.redrive_dead_letters(&DeadLetterFilter::default(), 10).await.expect("asked");
    assert_eq!(asked.len(), 3);
    let after = until("each had its try", SOON, async || {
        let after = world.dead_letters().await.ok()?;
        after.iter().all(|one| one.redrive_at.is_none()).then_some(after)
    })
    .await;
    for one in &after {
        assert_eq!(one.attempts, tries(one.id) + 1, "{one:?}");
        let unopened = one.last_error.contains("its bytes cannot be opened");
        assert_eq!(unopened, one.id == damaged, "{one:?}");
    }
}

/// A release that is newer may have written it. It is the webhooks of this connection that wait for a person, and no others.
#[tokio::test]
async fn a_connection_that_can_not_be_read_stops_no_other_of_its_partition() {
    let world = World::start(SMALL).await.expect("a world");
    let connect =
        async |id| world.connect_as(|new| (new.id, new.agent) = (id, Some(agent_id()))).await;
    let random = || ConnectionId::random().expect("randomness");
    let of = |id| Partition::of(id, Some("D1"));
    let id = random();
    let same = std::iter::repeat_with(random).find(|other| of(*other) == of(id)).expect("another");
    let newer = connect(id).await.expect("one");
    let other = connect(same).await.expect("another");
    let set = async |settings: &str| {
        sqlx::query("update connections set settings = $1::jsonb where id = $2")
            .bind(settings)
            .bind(newer.connection.to_string())
            .execute(&world.pool)
            .await
            .expect("changed")
    };
    set(r#"{"surfaces": ["hologram"]}"#).await;
    let unread = Webhook::message(&world.slack, &newer, "D1", "U1", "hello");
    world.send(&newer, &unread).await.expect("an answer");
    let read = Webhook::message(&world.slack, &other, "D1", "U1", "hello");
    world.send(&other, &read).await.expect("an answer");
    assert_eq!(world.handled(&read.dedupe).await.outcome, "completed");
    let dead = world.dead_letters().await.expect("a list");
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0].reason, "its connection is unreadable");
    assert!(dead[0].last_error.contains("connections.settings"), "{}", dead[0].last_error);
    set("{}").await;
    world.tidegate(&["dead-letters", "redrive", &dead[0].id.to_string()]).expect("redriven");
    assert_eq!(world.handled(&unread.dedupe).await.outcome, "completed");
}
