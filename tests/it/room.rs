//! History yields to live traffic, and nothing that is still needed goes with it.

use shared::stream::STREAM;
use std::time::Duration;
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{App, SMALL, SOON, World, agent_id},
};

const PATIENTLY: Duration = Duration::from_secs(60);

async fn first_sequence(world: &World) -> u64 {
    let stream = world.jetstream().get_stream(STREAM).await.expect("the stream");
    stream.cached_info().state.first_sequence
}

async fn fill(world: &World, app: &App) {
    world.change_stream(|stream| stream.max_bytes = 400_000).await.expect("little room");
    // Random, or it would be stored compressed.
    for n in 0..10 {
        let noise: String = (0..8_000)
            .map(|_| format!("{:04x}", getrandom::u32().expect("randomness") as u16))
            .collect();
        let webhook = Webhook::message(&world.slack, app, &format!("C{n}"), "U1", &noise);
        assert_eq!(world.send(app, &webhook).await.expect("an answer").status, 200);
    }
}

#[tokio::test]
async fn finished_history_makes_room_when_the_stream_fills_up() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    fill(&world, &app).await;
    until("history is purged", PATIENTLY, async || {
        (first_sequence(&world).await > 1).then_some(())
    })
    .await;
    let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "there is room");
    assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200);
    world.handled(&webhook.dedupe).await;
}

/// A parked webhook lies in the stream, far below the cursor.
#[tokio::test]
async fn what_is_parked_is_not_purged() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    world.agent.break_down(true);
    let parked = Webhook::message(&world.slack, &app, "D1", "U1", "fail:99 parked");
    world.send(&app, &parked).await.expect("an answer");
    until("it is parked", SOON, async || {
        let rows: i64 = sqlx::query_scalar("select count(*) from lane_backlog")
            .fetch_one(&world.pool)
            .await
            .ok()?;
        (rows == 1).then_some(())
    })
    .await;
    world.agent.break_down(false);
    let other = world.connect().await.expect("another connection");
    fill(&world, &other).await;
    until("room was looked for", PATIENTLY, async || {
        world.logs().contains("nothing in it is finished").then_some(())
    })
    .await;
    assert_eq!(first_sequence(&world).await, 1);
}

/// What waits so long that the stream may forget it is copied to Postgres, and handled from there.
#[tokio::test]
async fn what_is_parked_for_over_a_day_outlives_its_place_in_the_stream() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let parked = Webhook::message(&world.slack, &app, "D1", "U1", "fail:7 parked");
    world.send(&app, &parked).await.expect("an answer");
    let aged = "update lane_backlog set parked_at = now() - interval '25 hours'";
    until("it is parked, and made old", SOON, async || {
        let aged = sqlx::query(aged).execute(&world.pool).await.ok()?;
        (aged.rows_affected() == 1).then_some(())
    })
    .await;
    until("its bytes are kept", PATIENTLY, async || {
        let kept: i64 =
            sqlx::query_scalar("select count(*) from lane_backlog where sealed is not null")
                .fetch_one(&world.pool)
                .await
                .ok()?;
        (kept == 1).then_some(())
    })
    .await;
    let js = async_nats::jetstream::new(world.client().clone());
    let stream = js.get_stream(STREAM).await.expect("the stream");
    stream.purge().sequence(2).await.expect("purged");
    assert!(
        world.look(&parked.dedupe).await.is_none(),
        "it still waits, and the stream has it no more"
    );
    assert_eq!(world.handled(&parked.dedupe).await.outcome, "done");
    world.slack.told("its answer", |told| told.text() == "I heard: fail:7 parked").await;
}

/// A look copies 500 at most. The next goes on behind them, whatever became of them.
#[tokio::test]
async fn what_can_not_be_copied_keeps_nothing_behind_it_from_being_copied() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let first = Webhook::message(&world.slack, &app, "D1", "U1", "first");
    world.send(&app, &first).await.expect("an answer");
    world.handled(&first.dedupe).await;
    let parked = Webhook::message(&world.slack, &app, "D2", "U1", "fail:99 parked");
    world.send(&app, &parked).await.expect("an answer");
    // As many before it, of lanes that nobody works off, whose bytes are not where they should be.
    let others = "with parked as (
            update lane_backlog set parked_at = now() - interval '25 hours' where sequence = 2 returning *)
        insert into lane_backlog (scope, generation, lane, sequence, partition, connection_id, dedupe_key, parked_at)
        select scope, generation, n, 1, partition, connection_id, 'gone:' || n, parked_at
          from parked, generate_series(1, 500) as n";
    until("it is parked, and others before it", SOON, async || {
        let made = sqlx::query(others).execute(&world.pool).await.ok()?;
        (made.rows_affected() == 500).then_some(())
    })
    .await;
    let kept = until("bytes are kept", PATIENTLY, async || {
        let kept = "select dedupe_key from lane_backlog where sealed is not null";
        let kept: Vec<String> = sqlx::query_scalar(kept).fetch_all(&world.pool).await.ok()?;
        (!kept.is_empty()).then_some(kept)
    })
    .await;
    assert_eq!(kept, [parked.dedupe.as_str()]);
}

#[tokio::test]
async fn rows_past_their_time_go_and_the_others_stay() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let (old, young) = (
        Webhook::command(&world.slack, &app, "C1", "U1", "/lobu", "help"),
        Webhook::command(&world.slack, &app, "C1", "U2", "/lobu", "help"),
    );
    for webhook in [&old, &young] {
        world.send(&app, webhook).await.expect("an answer");
        world.handled(&webhook.dedupe).await;
        world.slack.told("it is said", |receipt| webhook.response_url.ends_with(&receipt.to)).await;
    }
    // Slack hears of it a moment before that is written down.
    until("both are settled", SOON, async || {
        let sent = "select count(*) from outbox where state = 'sent'";
        let sent: i64 = sqlx::query_scalar(sent).fetch_one(&world.pool).await.ok()?;
        (sent == 2).then_some(())
    })
    .await;
    for sql in [
        "update seen set at = now() - interval '49 hours' where dedupe_key = $1",
        "update outbox set settled_at = now() - interval '31 days' where dedupe_key = $1",
    ] {
        sqlx::query(sql).bind(old.dedupe.as_str()).execute(&world.pool).await.expect("aged");
    }
    until("the old one is forgotten", PATIENTLY, async || {
        let left = sqlx::query_scalar("select dedupe_key from outbox").fetch_all(&world.pool);
        let left: Vec<String> = left.await.ok()?;
        (world.look(&old.dedupe).await.is_none() && left == [young.dedupe.as_str()]).then_some(())
    })
    .await;
    assert!(world.look(&young.dedupe).await.is_some());
    until("lanes below their cursors are gone", PATIENTLY, async || {
        let lanes: i64 =
            sqlx::query_scalar("select count(*) from lanes").fetch_one(&world.pool).await.ok()?;
        (lanes == 0).then_some(())
    })
    .await;
}
