//! A stream that is not the one that was read is noticed, said aloud, and read again from what was unfinished.

use async_nats::jetstream::{self, context::Context, message::StreamMessage};
use shared::stream::{self, STREAM, Sizing};
use std::time::Duration;
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{App, SMALL, SOON, World, agent_id},
};

const ALARM: &str = "the stream is not the one that was read";

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
        let least: i64 = sqlx::query_scalar("select min(cursor) from partition_leases")
            .fetch_one(&world.pool)
            .await
            .ok()?;
        (least >= at_least).then_some(())
    })
    .await;
}

async fn both_set_aside(world: &World) {
    until("both are set aside", SOON, async || {
        let count = sqlx::query_scalar("select count(*) from lane_backlog");
        let count: i64 = count.fetch_one(&world.pool).await.ok()?;
        (count == 2).then_some(())
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
        sqlx::query_scalar("select count(*) from partition_leases where generation = 2")
            .fetch_one(&world.pool)
            .await
            .expect("a count");
    assert_eq!(raised, 64, "every partition reads the new stream");
    let counted = world.workers[0].metric("worker_stream_generations_raised_total").await;
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

/// A hole between the cursor and the stream's first: what is in it can't be handled, and somebody hears so.
#[tokio::test]
async fn what_expired_before_it_was_read_is_said_aloud_and_what_is_left_is_handled() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let first = say(&world, &app, "D1", "before").await;
    world.handled(&first.dedupe).await;
    cursors_at(&world, 1).await;
    let worker = &world.workers[0].process;
    worker.terminate();
    worker.wait(SOON).await.expect("it ends");
    let gone = say(&world, &app, "D1", "gone").await;
    let left = say(&world, &app, "D1", "left").await;
    expire(&world, 2).await;
    worker.restart().expect("it starts");
    world.handled(&left.dedupe).await;
    assert!(world.look(&gone.dedupe).await.is_none());
    world.logged(ALARM).await.expect("somebody is told");
    world.logged("what came next is not in it any more").await.expect("and why");
}

/// What was set aside in a stream that is gone is dead, by name; what the new one has again is handled, not buried.
#[tokio::test]
async fn what_was_parked_in_a_stream_that_is_gone_is_handled_if_it_is_there_again_and_else_dead() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let first = say(&world, &app, "D1", "fail:3 kept").await;
    let lost = say(&world, &app, "D1", "lost").await;
    both_set_aside(&world).await;
    let kept = js(&world).get_stream(STREAM).await.expect("the stream");
    let copies = [kept.get_raw_message(1).await, kept.get_raw_message(2).await];
    let [first_copy, lost_copy] = copies.map(|copy| copy.expect("a copy"));
    let restore = async |copy: StreamMessage| {
        let sent = js(&world).publish_with_headers(copy.subject, copy.headers, copy.payload).await;
        sent.expect("sent").await.expect("stored");
    };
    let worker = &world.workers[0].process;
    worker.terminate();
    worker.wait(SOON).await.expect("it ends");
    make_anew(&world).await;
    restore(first_copy).await;
    worker.restart().expect("it starts");
    assert_eq!(world.handled(&first.dedupe).await.outcome, "done");
    let dead = until("the other is dead", Duration::from_secs(60), async || {
        let dead = world.store.dead(10).await.ok()?;
        (!dead.is_empty()).then_some(dead)
    })
    .await;
    assert_eq!(dead.len(), 1, "{dead:?}");
    assert_eq!(dead[0].dedupe.as_deref(), Some(lost.dedupe.as_str()));
    let left: i64 = sqlx::query_scalar("select count(*) from lane_backlog")
        .fetch_one(&world.pool)
        .await
        .expect("a count");
    assert_eq!(left, 0);
    restore(lost_copy).await;
    assert_eq!(world.handled(&lost.dedupe).await.outcome, "done", "its bytes came after all");
}

/// Bytes that were kept under a key that is missing may be opened again, once it is back; they hold up nothing else.
#[tokio::test]
async fn parked_bytes_that_can_not_be_opened_are_left_alone_and_hold_up_no_others() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let closed = say(&world, &app, "D1", "fail:99 closed").await;
    let lost = say(&world, &app, "D1", "lost").await;
    both_set_aside(&world).await;
    let worker = &world.workers[0].process;
    worker.terminate();
    worker.wait(SOON).await.expect("it ends");
    sqlx::query("update lane_backlog set sealed = 'under another key' where dedupe_key = $1")
        .bind(closed.dedupe.as_str())
        .execute(&world.pool)
        .await
        .expect("closed");
    make_anew(&world).await;
    worker.restart().expect("it starts");
    let dead = async |count| {
        until("they are dead", Duration::from_secs(60), async || {
            let dead = world.store.dead(10).await.ok()?;
            (dead.len() == count).then_some(dead)
        })
        .await
    };
    assert_eq!(dead(1).await[0].dedupe.as_deref(), Some(lost.dedupe.as_str()));
    world.logged("its bytes can't be opened").await.expect("somebody is told");
    let left: Vec<String> = sqlx::query_scalar("select dedupe_key from lane_backlog")
        .fetch_all(&world.pool)
        .await
        .expect("what is left");
    assert_eq!(left, [closed.dedupe.as_str()]);
    // Somebody gives them up: it is looked at again.
    sqlx::query("update lane_backlog set sealed = null")
        .execute(&world.pool)
        .await
        .expect("given up");
    dead(2).await;
}
