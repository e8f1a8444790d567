//! What an administrator, or a failing disk, does to the stream: deleted, cut short, purged.

use crate::{
    Run,
    rows::Outcome,
    trial::{SIZE, Trial, held, in_time, replace_workers, say_everywhere, taken},
};
use anyhow::ensure;
use shared::{
    partition::Partition,
    stream::{STREAM, subjects_of},
};
use std::time::{Duration, Instant};
use tests::{
    slack::webhook::Webhook,
    strike::CALM,
    until::try_until,
    world::{SOON, World, agent_id},
};

const ALARM: &str = "stream reset detected";
/// Messages that are handled before, and come again after.
const COPIES: usize = 5;
/// Once it is there again: what was refused comes again, and workers find it.
const READ_AGAIN: Duration = Duration::from_secs(5);

/// Nothing more is let in, what is in it is handled, it goes, and the operator's verb makes it anew. What is not taken meanwhile is
/// told so and comes again. What was handled before and comes again is taken, since only Postgres remembers it, and has no second
/// effect. What a stream holds that goes before it is handled goes with it: that is no promise that anybody can keep.
pub async fn gone(_: Run) -> anyhow::Result<Outcome> {
    let world = World::start(SIZE).await?;
    let (mut copies, mut away, mut taken_again) = (Vec::new(), Duration::ZERO, Duration::ZERO);
    let trial = Trial { users: 4, repeats: false, ..Trial::default() };
    let verdict = trial
        .in_world(&world, async |world, app| {
            let say = |text: &str| Webhook::message(&world.slack, app, "D9500", "U1", text);
            for n in 0..COPIES {
                copies.push(say(&format!("before {n}")));
                taken(world, app, &copies[n]).await?;
            }
            let closed = Instant::now();
            world.change_stream(|stream| stream.max_messages = 1).await?;
            world.worked_off(SOON).await?;
            world.jetstream().delete_stream(STREAM).await?;
            tokio::time::sleep(CALM).await;
            let answer = world.send(app, &say("into nothing")).await?;
            ensure!(answer.status == 503, "without a stream: {answer:?}");
            world.operate(&["migrate"]).await?;
            away = closed.elapsed();
            let made = Instant::now();
            for copy in &copies {
                taken(world, app, copy).await?;
            }
            taken_again = made.elapsed();
            // Behind them in their conversation: once it is done, they were looked at.
            let last = say("the last");
            taken(world, app, &last).await?;
            world.try_handled(&last.dedupe).await?;
            Ok(())
        })
        .await?;
    in_time(&verdict)?;
    ensure!(verdict.told_so > 0, "no command was told that it was not taken: {verdict}");
    ensure!(verdict.turned_away > 0, "nothing was turned away: {verdict}");
    ensure!(verdict.worst_gap < away + READ_AGAIN, "away for {away:?}: {verdict}");
    let (told, asked) = (world.slack.receipts(), world.agent.asked());
    for (n, copy) in copies.iter().enumerate() {
        let answer = format!("I heard: before {n}");
        let told = told.iter().filter(|receipt| receipt.text() == answer).count();
        let asked = asked.iter().filter(|asked| asked.question["text"] == copy.what).count();
        ensure!((told, asked) == (1, 1), "{answer}: told {told} times, asked {asked} times");
    }
    world.logged(ALARM).await?;
    let raised = "select count(*) from partition_cursors where generation = 2";
    try_until("every partition reads the new stream", SOON, async || {
        let raised: i64 = sqlx::query_scalar(raised).fetch_one(&world.pool).await.ok()?;
        (raised == 64).then_some(())
    })
    .await?;
    let (away, ms) = (away.as_secs_f64(), taken_again.as_millis());
    let notes = format!("{away:.1} s away, {COPIES} copies without effect within {ms} ms");
    held(verdict, [notes])
}

/// The stream is brought back as it was some time ago, and gets other messages in place of those that it lost, past the cursors,
/// before a worker looks at it. Everything that it lost was handled: that is the most that anybody can keep.
pub async fn cut_short(_: Run) -> anyhow::Result<Outcome> {
    let world = World::start(SIZE).await?;
    let mut lost = 0;
    let trial = Trial { drained_within: Duration::from_secs(90), ..Trial::default() };
    let verdict = trial
        .in_world(&world, async |world, _| {
            world.nats.save().await?;
            let before = last_sequence(world).await?;
            tokio::time::sleep(2 * CALM).await;
            world.change_stream(|stream| stream.max_messages = 1).await?; // nothing more is let in
            world.worked_off(SOON).await?;
            let end = last_sequence(world).await?;
            lost = end - before;
            world.workers.iter().for_each(|worker| worker.process.kill());
            world.nats.restore().await?;
            try_until("the stream is filled past the cursors", SOON, async || {
                (last_sequence(world).await.ok()? > end + 50).then_some(())
            })
            .await?;
            for worker in &world.workers {
                worker.process.restart()?;
            }
            world.settled().await
        })
        .await?;
    in_time(&verdict)?;
    ensure!(lost > 20, "only {lost} messages were lost: nothing was proved");
    world.logged(ALARM).await?;
    held(verdict, [format!("the last {lost} messages were lost, and others came in their place")])
}

/// The same beside workers that go on, which have read partitions up to the end although nothing of them came for a while: what
/// comes there in place of what was lost is read.
pub async fn cut_short_beside_workers(_: Run) -> anyhow::Result<Outcome> {
    let world = World::start(SIZE).await?;
    let mut lost = 0;
    let trial = Trial { drained_within: Duration::from_secs(90), ..Trial::default() };
    let verdict = trial
        .in_world(&world, async |world, _| {
            let idle = world.connect_as(|new| new.agent = Some(agent_id())).await?;
            say_everywhere(world, &idle, "before").await?;
            world.nats.save().await?;
            let before = last_sequence(world).await?;
            tokio::time::sleep(2 * CALM).await;
            // Readers that are opened anew look where the end is.
            world.nats.kill();
            world.nats.restart().await?;
            tokio::time::sleep(CALM).await;
            world.change_stream(|stream| stream.max_messages = 1).await?; // nothing more is let in
            world.worked_off(SOON).await?;
            lost = last_sequence(world).await? - before;
            world.nats.restore().await?;
            say_everywhere(world, &idle, "after").await?;
            Ok(())
        })
        .await?;
    in_time(&verdict)?;
    ensure!(lost > 50, "only {lost} messages were lost: nothing was proved");
    world.logged(ALARM).await?;
    held(verdict, [format!("the last {lost} messages were lost, and others came in their place")])
}

/// Everything committed is purged, and workers are replaced: that the last message of a partition is not there proves nothing.
pub async fn purged(_: Run) -> anyhow::Result<Outcome> {
    let world = World::start(SIZE).await?;
    let trial = Trial { repeats: false, ..Trial::default() };
    let verdict = trial
        .in_world(&world, async |world, _| {
            let idle = world.connect_as(|new| new.agent = Some(agent_id())).await?;
            say_everywhere(world, &idle, "before").await?;
            let cursors: Vec<(i16, i64)> =
                sqlx::query_as("select partition, cursor from partition_cursors")
                    .fetch_all(&world.pool)
                    .await?;
            let stream = world.jetstream().get_stream(STREAM).await?;
            for (partition, cursor) in cursors {
                let partition = Partition::try_from(partition as u16)?;
                let purge = stream.purge().filter(subjects_of(partition));
                purge.sequence(cursor as u64 + 1).await?;
            }
            replace_workers(world).await?;
            say_everywhere(world, &idle, "after").await?;
            Ok(())
        })
        .await?;
    in_time(&verdict)?;
    not_another_stream(&world).await?;
    held(verdict, [])
}

/// A tenant posts last in its partitions and is deleted with all that it sent; workers are replaced, and others post there.
pub async fn tenant_deleted(_: Run) -> anyhow::Result<Outcome> {
    let world = World::start(SIZE).await?;
    let trial = Trial { repeats: false, ..Trial::default() };
    let verdict = trial
        .in_world(&world, async |world, _| {
            let gone = world.connect_as(|new| new.agent = Some(agent_id())).await?;
            say_everywhere(world, &gone, "before").await?;
            let id = gone.connection.to_string();
            world.operate(&["connections", "delete", &id, "--yes"]).await?;
            replace_workers(world).await?;
            let others = (0..8).map(async |_| {
                let other = world.connect_as(|new| new.agent = Some(agent_id())).await?;
                say_everywhere(world, &other, "after").await
            });
            futures_util::future::try_join_all(others).await?;
            let left: i64 = sqlx::query_scalar(
                "select (select count(*) from deliveries where connection_id = $1)
                      + (select count(*) from outbox where connection_id = $1)",
            )
            .bind(&id)
            .fetch_one(&world.pool)
            .await?;
            ensure!(left == 0, "{left} rows of a deleted tenant are left");
            Ok(())
        })
        .await?;
    in_time(&verdict)?;
    not_another_stream(&world).await?;
    held(verdict, [])
}

async fn last_sequence(world: &World) -> anyhow::Result<u64> {
    Ok(world.jetstream().get_stream(STREAM).await?.cached_info().state.last_sequence)
}

/// No partition took the stream for another one.
async fn not_another_stream(world: &World) -> anyhow::Result<()> {
    let raised = "select count(*) from partition_cursors where generation > 1";
    let raised: i64 = sqlx::query_scalar(raised).fetch_one(&world.pool).await?;
    ensure!(
        raised == 0 && !world.logs().contains(ALARM),
        "{raised} partitions read another stream"
    );
    Ok(())
}
