//! The largest webhooks there are, many of them: every process stays within the memory that it is given.
//!
//! With `TIDEGATE_FULL_SIZE` there are 2,000 of 1 MiB, which takes release builds (`TIDEGATE_BIN_DIR`); in CI 200 of 64 KiB, and
//! a limit to match. What each process held at most is printed with `--nocapture`.

use futures_util::{StreamExt, stream};
use shared::stream::BODY_BYTES_MAX;
use std::time::Duration;
use tests::{
    counter::CountingAgent,
    provision::new_agent,
    size::ci_or_full,
    slack::webhook::Webhook,
    until::{try_until, until},
    world::{App, SMALL, World, agent_id},
};

/// The agent is slow enough for webhooks to pile up in the worker.
const AGENT_TAKES: Duration = Duration::from_millis(300);

/// A message whose body has this many bytes, or a few less.
fn large(world: &World, app: &App, channel: &str, n: usize, bytes: usize) -> Webhook {
    let ts = world.slack.ts();
    let message =
        |text: &str| Webhook::said_unkept(&world.slack, app, "message", channel, "U1", text, &ts);
    let room = bytes - message("").body.len() - 64; // ids may grow by a digit
    let words = format!(" {n}/0");
    // Random: the stream is compressed.
    let mut random = n as u64 | 1;
    let filling = std::iter::repeat_with(|| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        char::from(b'a' + (random % 26) as u8)
    });
    let webhook = message(&(filling.take(room - words.len()).collect::<String>() + &words));
    assert!(webhook.body.len() <= bytes && webhook.body.len() + 256 > bytes);
    webhook
}

#[tokio::test(flavor = "multi_thread")]
async fn largest_webhooks_stay_within_the_memory_limit() {
    let (count, bytes) = ci_or_full((200, 64 << 10), (2_000, BODY_BYTES_MAX));
    let bytes_max = ci_or_full(128_u64 << 20, 512 << 20);
    let world = World::start(SMALL).await.expect("a world");
    world.change_stream(|stream| stream.max_bytes = 4 << 30).await.expect("room");
    let places = world.connect_everywhere().await.expect("connections");
    let agent = CountingAgent::start().await.expect("an agent");
    agent.set_takes(AGENT_TAKES);
    let mut new = new_agent(&places[0].0.org, agent_id(), agent.url()).expect("an agent");
    new.max_concurrent = ci_or_full(16, 128);
    world.store.put_agent(&new).await.expect("Postgres");
    let mut sending = stream::iter(0..count)
        .map(async |n| {
            let (app, channel) = &places[n % places.len()];
            let webhook = large(&world, app, channel, n, bytes);
            until("it is taken", Duration::from_secs(60), async || {
                let answer = world.send(app, &webhook).await.ok()?;
                (answer.status == 200).then_some(())
            })
            .await;
        })
        .buffer_unordered(ci_or_full(16, 64));
    while sending.next().await.is_some() {}
    let delivered = try_until("all are delivered", Duration::from_secs(300), async || {
        (agent.counted().in_order >= count).then_some(())
    });
    if let Err(late) = delivered.await {
        panic!("{late:#}: {:?}\n{}", agent.counted(), world.logs());
    }
    let ingest = ("ingest", world.ingests[0].process.peak_resident());
    let worker = ("worker", world.workers[0].process.peak_resident());
    for (name, held) in [ingest, worker] {
        let held = held.expect("it did not die");
        println!("{name} held {} MiB at most", held >> 20);
        assert!(held < bytes_max, "{name} held {} MiB", held >> 20);
    }
    assert_eq!(agent.counted().in_order, count);
}
