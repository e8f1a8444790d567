//! Committed history yields to live traffic, and nothing that is still needed goes with it.

use shared::stream::STREAM;
use std::time::Duration;
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{App, SMALL, SOON, World, agent_id},
};

/// Owners of partitions look for room once a minute; an agent that was away is asked again after as long.
const PATIENTLY: Duration = Duration::from_secs(100);

async fn first_sequence(world: &World) -> u64 {
    let stream = world.jetstream().get_stream(STREAM).await.expect("the stream");
    stream.cached_info().state.first_sequence
}

async fn fill(world: &World, app: &App) {
    world.change_stream(|stream| stream.max_bytes = 350_000).await.expect("little room");
    // Random, or it would be stored compressed.
    for n in 0..10 {
        let noise: String = (0..8_000)
            .map(|_| format!("{:04x}", getrandom::u32().expect("randomness") as u16))
            .collect();
        let webhook = Webhook::message(&world.slack, app, &format!("C{n}"), "U1", &noise);
        assert_eq!(world.send(app, &webhook).await.expect("an answer").status, 200);
    }
}

async fn count(world: &World, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql).fetch_one(&world.pool).await.expect("a count")
}

/// What waits for its agent is in Postgres, so its place in the stream may go; the ledger knows what was purged.
#[tokio::test]
async fn committed_history_makes_room_and_what_waits_for_its_agent_is_delivered_all_the_same() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    world.agent.break_down(true);
    // The last webhook of a partition stays in the stream: its cursor is recognized by it.
    let waiting = ["one", "two"].map(|text| Webhook::message(&world.slack, &app, "D1", "U1", text));
    for webhook in &waiting {
        assert_eq!(world.send(&app, webhook).await.expect("an answer").status, 200);
    }
    until("both wait for their agent", SOON, async || {
        (count(&world, "select count(*) from deliveries").await == 2).then_some(())
    })
    .await;
    let other = world.connect().await.expect("another connection");
    fill(&world, &other).await;
    until("the place of the first in the stream is purged", PATIENTLY, async || {
        (first_sequence(&world).await > 1).then_some(())
    })
    .await;
    world.agent.break_down(false);
    for webhook in &waiting {
        let handled =
            until("it is tried again", PATIENTLY, async || world.look(&webhook.dedupe).await);
        assert_eq!(handled.await.outcome, "completed");
    }
    world.slack.told("the answer to the purged", |told| told.text() == "I heard: one").await;

    let webhook = Webhook::message(&world.slack, &other, "C1", "U1", "there is room");
    assert_eq!(world.send(&other, &webhook).await.expect("an answer").status, 200);
    world.handled(&webhook.dedupe).await;
    let verified = world.tidegate(&["ledger", "verify"]).expect("nothing is missing");
    assert!(verified.contains("0 missing"), "{verified}");
}

#[tokio::test]
async fn rows_past_their_time_go_and_the_others_stay() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let young = Webhook::message(&world.slack, &app, "D1", "U1", "hello");
    world.send(&app, &young).await.expect("an answer");
    world.handled(&young.dedupe).await;
    until("it is told", SOON, async || {
        (count(&world, "select count(*) from outbox_log").await == 1).then_some(())
    })
    .await;
    // In slots that no day in use has.
    for sql in [
        "insert into outbox_log (slot, outbox_id, connection_id, lane, channel_key, method, dedup_key, attempts,
                                 resend_count, created_at)
         select (floor(extract(epoch from now()) / 86400)::integer - 30) % 32, 99, connection_id, lane, channel_key, method,
                'old', 1, 0, now() - interval '31 days' from outbox_log limit 1",
        "insert into processed_keys (slot, partition, day, key, generation, sequence, outcome)
         select (floor(extract(epoch from now()) / 86400)::integer - 5) % 8, 0,
                floor(extract(epoch from now()) / 86400)::integer - 5, '\\x00', 1, 1, 1",
        "insert into link_code_attempts (who, misses, until) values ('old', 1, now() - interval '1 s')",
    ] {
        sqlx::query(sql).execute(&world.pool).await.expect("an old row");
    }
    for (old, left) in [
        (
            "select count(*) from outbox_log where dedup_key = 'old'",
            "select count(*) from outbox_log",
        ),
        (
            "select count(*) from processed_keys where key = '\\x00'",
            "select count(*) from processed_keys",
        ),
        ("select count(*) from link_code_attempts", "select count(*) + 1 from link_code_attempts"),
    ] {
        until("the old row is gone", SOON * 2, async || {
            (count(&world, old).await == 0).then_some(())
        })
        .await;
        assert!(count(&world, left).await >= 1, "{left}");
    }
    until("lanes in which nothing waits are gone", SOON * 2, async || {
        (count(&world, "select count(*) from delivery_lanes").await == 0).then_some(())
    })
    .await;
}
