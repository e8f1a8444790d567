//! An administrator deletes the stream.

use crate::{
    Run,
    rows::Outcome,
    trial::{SIZE, Trial, held, in_time},
};
use anyhow::ensure;
use shared::stream::STREAM;
use std::time::{Duration, Instant};
use tests::{
    slack::webhook::Webhook,
    strike::CALM,
    until::try_until,
    world::{App, SOON, World},
};

const ALARM: &str = "the stream is not the one that was read";
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
            drained(world).await?;
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
    let raised = "select count(*) from partition_leases where generation = 2";
    try_until("every partition reads the new stream", SOON, async || {
        let raised: i64 = sqlx::query_scalar(raised).fetch_one(&world.pool).await.ok()?;
        (raised == 64).then_some(())
    })
    .await?;
    let (away, ms) = (away.as_secs_f64(), taken_again.as_millis());
    let notes = format!("{away:.1} s away, {COPIES} copies without effect within {ms} ms");
    held(verdict, [notes])
}

/// It is taken, as soon as there is a stream.
async fn taken(world: &World, app: &App, webhook: &Webhook) -> anyhow::Result<()> {
    try_until("it is taken", SOON, async || {
        let answer = world.send(app, webhook).await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await
}

/// Everything that the stream holds is handled, and said.
async fn drained(world: &World) -> anyhow::Result<()> {
    let unsaid = "select count(*) from outbox where state in ('pending', 'sending')";
    try_until("what is in the stream is handled", SOON, async || {
        let unsaid: i64 = sqlx::query_scalar(unsaid).fetch_one(&world.pool).await.ok()?;
        let handled = world.finished().await.ok()? == world.stored().await.ok()?;
        (handled && unsaid == 0).then_some(())
    })
    .await
}
