//! A stream that is not the one that was read is noticed, logged, and read again from the time of the last commit.

use async_nats::jetstream::{self, context::Context};
use shared::{
    partition::Partition,
    stream::{self, STREAM, Sizing},
};
use std::time::Duration;
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{App, SMALL, SOON, World, agent_id},
};

const ALARM: &str = "stream reset detected";

async fn say(world: &World, app: &App, channel: &str, text: &str) -> Webhook {
    let webhook = Webhook::message(&world.slack, app, channel, "U1", text);
    let taken = async || match world.send(app, &webhook).await {
        Ok(answer) if answer.status == 200 => Some(()),
        _ => None, // the stream is being made
    };
    until("it is taken", SOON, taken).await;
    webhook
}

fn js(world: &World) -> Context {
    jetstream::new(world.client().clone())
}

/// Deletes the stream and makes it again, empty.
async fn make_anew(world: &World) {
    js(world).delete_stream(STREAM).await.expect("it goes");
    stream::ensure(&js(world), Sizing::default()).await.expect("it comes");
}

/// Takes away everything up to a sequence, read or not.
async fn expire(world: &World, through: u64) {
    let stream = js(world).get_stream(STREAM).await.expect("the stream");
    stream.purge().sequence(through + 1).await.expect("it is purged");
}

async fn cursors_at(world: &World, at_least: i64) {
    until("the cursors are saved", SOON, async || {
        let least: i64 = sqlx::query_scalar("select max(cursor) from partition_cursors")
            .fetch_one(&world.pool)
            .await
            .ok()?;
        (least >= at_least).then_some(())
    })
    .await;
}

async fn asked(world: &World, text: &str) -> usize {
    world.agent.asked().iter().filter(|asked| asked.question["text"] == text).count()
}

/// Its numbers begin at one again, below every cursor: read on, they would be skipped.
#[tokio::test]
async fn what_comes_after_a_stream_was_made_anew_is_handled_and_nothing_twice() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    for n in 0..5 {
        let said = say(&world, &app, "D1", &format!("before {n}")).await;
        world.handled(&said.dedupe).await;
    }
    cursors_at(&world, 5).await;
    make_anew(&world).await;
    for n in 0..3 {
        let said = say(&world, &app, "D1", &format!("after {n}")).await;
        world.handled(&said.dedupe).await;
        assert_eq!(asked(&world, &format!("after {n}")).await, 1);
    }
    world.logged(ALARM).await.expect("somebody is told");
    let raised: i64 =
        sqlx::query_scalar("select count(*) from partition_cursors where generation = 2")
            .fetch_one(&world.pool)
            .await
            .expect("a count");
    assert_eq!(raised, 64, "every partition reads the new stream");
    let counted = world.workers[0].metric("tidegate_stream_resets_total").await;
    assert_eq!(counted.expect("a figure"), 64.0);
}

/// The same while nobody reads: found when the partition is leased.
#[tokio::test]
async fn a_stream_made_anew_while_no_worker_ran_is_noticed_by_the_next() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    for n in 0..5 {
        let said = say(&world, &app, "D1", &format!("before {n}")).await;
        world.handled(&said.dedupe).await;
    }
    cursors_at(&world, 5).await;
    let worker = &world.workers[0].process;
    worker.terminate();
    worker.wait(SOON).await.expect("it ends");
    make_anew(&world).await;
    // As long as the old one, so that only the time of its making tells them apart.
    let mut said = Vec::new();
    for n in 0..7 {
        said.push(say(&world, &app, "D1", &format!("after {n}")).await);
    }
    worker.restart().expect("it starts");
    for webhook in &said {
        world.handled(&webhook.dedupe).await;
    }
    world.logged(ALARM).await.expect("somebody is told");
}

/// What the stream dropped between the cursor and its first message cannot be handled; what is left is. The ledger of what
/// was committed has no more to say about it, and no stream was reset.
#[tokio::test]
async fn what_is_left_of_a_stream_whose_beginning_is_gone_is_handled_and_no_reset_is_detected() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let first = say(&world, &app, "D1", "before").await;
    world.handled(&first.dedupe).await;
    cursors_at(&world, 1).await;
    let worker = &world.workers[0].process;
    worker.terminate();
    worker.wait(SOON).await.expect("it ends");
    say(&world, &app, "D1", "gone").await;
    let left = say(&world, &app, "D1", "left").await;
    expire(&world, 2).await;
    let first = js(&world).get_stream(STREAM).await.expect("the stream");
    assert_eq!(first.cached_info().state.first_sequence, 3);
    worker.restart().expect("it starts");
    world.handled(&left.dedupe).await;
    assert_eq!((asked(&world, "gone").await, asked(&world, "left").await), (0, 1));
    assert!(!world.logs().contains(ALARM), "{}", world.logs());
}

/// A stream that was cut short and filled again has another message at the sequence of the last committed one.
#[tokio::test]
async fn a_stream_cut_short_and_filled_again_is_noticed() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let mut said = Vec::new();
    for n in 0..5 {
        said.push(say(&world, &app, "D1", &format!("before {n}")).await);
        world.handled(&said[n].dedupe).await;
    }
    let worker = &world.workers[0].process;
    worker.terminate();
    worker.wait(SOON).await.expect("it ends");
    // As if the stream had been restored to what it was after the third webhook.
    sqlx::query(
        "update partition_cursors set last_key = 'a webhook of the stream that was', last_stored_at = now() - interval '1 s'
          where messages > 0",
    )
    .execute(&world.pool)
    .await
    .expect("changed");
    let after = say(&world, &app, "D1", "after").await;
    worker.restart().expect("it starts");
    world.handled(&after.dedupe).await;
    world.logged(ALARM).await.expect("somebody is told");
    for n in 0..5 {
        assert_eq!(asked(&world, &format!("before {n}")).await, 1, "nothing is called twice");
    }
}

/// A partition of which nothing came for a while is read up to the stream's end. When the stream loses that end, what comes there
/// in its place is read by the same reader.
#[tokio::test]
async fn what_comes_into_an_idle_partition_of_a_stream_cut_short_is_handled() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let of = |channel: &str| Partition::of(app.connection, Some(channel));
    let busy = (2..).map(|n| format!("D{n}")).find(|channel| of(channel) != of("D1"));
    let busy = busy.expect("a channel of another partition");
    let said = say(&world, &app, "D1", "before").await;
    world.handled(&said.dedupe).await;
    world.nats.save().await.expect("it comes back");
    for n in 0..10 {
        let said = say(&world, &app, &busy, &format!("lost {n}")).await;
        world.handled(&said.dedupe).await;
    }
    // A reader that is opened anew looks where the end is.
    world.nats.restart().await.expect("it comes back");
    let said = say(&world, &app, &busy, "lost, too").await;
    world.handled(&said.dedupe).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    world.nats.restore().await.expect("it comes back");
    let after = say(&world, &app, "D1", "after").await;
    world.handled(&after.dedupe).await;
    assert_eq!(asked(&world, "after").await, 1);
}

/// A partition whose history was purged is idle, not reset.
#[tokio::test]
async fn an_idle_partition_whose_history_was_purged_raises_no_alarm() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    for n in 0..3 {
        let said = say(&world, &app, "D1", &format!("before {n}")).await;
        world.handled(&said.dedupe).await;
    }
    let worker = &world.workers[0].process;
    worker.terminate();
    worker.wait(SOON).await.expect("it ends");
    expire(&world, 3).await;
    worker.restart().expect("it starts");
    let after = say(&world, &app, "D1", "after").await;
    world.handled(&after.dedupe).await;
    assert!(!world.logs().contains(ALARM), "{}", world.logs());
}
