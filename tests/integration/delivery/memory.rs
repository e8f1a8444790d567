//! Memory limits of ingest and worker with many webhooks of the maximum size.
//!
//! With `TIDEGATE_FULL_SIZE` there are 2,000 of 1 MiB, which requires release builds
//! (`TIDEGATE_BIN_DIR`); in CI 200 of 64 KiB, with a smaller limit. Peak memory is printed with
//! `--nocapture`.

use futures_util::{StreamExt, stream};
use shared::stream::BODY_BYTES_MAX;
use std::time::Duration;
use tests::{
    counter::CountingAgent,
    eventually::{eventually, try_eventually},
    provision::new_agent,
    size::ci_or_full,
    slack::webhook::Webhook,
    test_env::{App, SMALL, TestEnv, agent_id},
};

/// Answer time of the agent, long enough for webhooks to accumulate in the worker.
const AGENT_TAKES: Duration = Duration::from_millis(300);

/// Returns a message whose body has `bytes` bytes, or a few less.
fn large(env: &TestEnv, app: &App, channel: &str, n: usize, bytes: usize) -> Webhook {
    let ts = env.slack.ts();
    let message = |text: &str| {
        Webhook::unrecorded_message_event(&env.slack, app, "message", channel, "U1", text, &ts)
    };
    let room = bytes - message("").body.len() - 64; // ids may grow by a digit
    let words = format!(" {n}/0");
    // Random, because the stream is compressed.
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

/// Ingest and worker stay within their memory limits under many webhooks of the maximum size.
#[tokio::test(flavor = "multi_thread")]
async fn bounds_memory_of_largest_webhooks() {
    let (count, bytes) = ci_or_full((200, 64 << 10), (2_000, BODY_BYTES_MAX));
    let bytes_max = ci_or_full(128_u64 << 20, 512 << 20);
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    env.change_stream(|stream| stream.max_bytes = 4 << 30).await.expect("room");
    let places = env.connect_all_partitions().await.expect("connections");
    let agent = CountingAgent::start().await.expect("an agent");
    agent.set_answer_time(AGENT_TAKES);
    let mut new = new_agent(&places[0].0.org, agent_id(), agent.url()).expect("an agent");
    new.max_concurrent = ci_or_full(16, 128);
    env.store.put_agent(&new).await.expect("Postgres");
    let mut sending = stream::iter(0..count)
        .map(async |n| {
            let (app, channel) = &places[n % places.len()];
            let webhook = large(&env, app, channel, n, bytes);
            eventually("the webhook is accepted", Duration::from_secs(60), async || {
                let answer = env.send(app, &webhook).await.ok()?;
                (answer.status == 200).then_some(())
            })
            .await;
        })
        .buffer_unordered(ci_or_full(16, 64));
    while sending.next().await.is_some() {}
    let delivered = try_eventually("all are delivered", Duration::from_secs(300), async || {
        (agent.counts().in_order >= count).then_some(())
    });
    if let Err(late) = delivered.await {
        panic!("{late:#}: {:?}\n{}", agent.counts(), env.logs());
    }
    let ingest = ("ingest", env.ingests[0].process.peak_resident());
    let worker = ("worker", env.workers[0].process.peak_resident());
    for (name, held) in [ingest, worker] {
        let held = held.expect("it did not die");
        println!("{name} held {} MiB at most", held >> 20);
        assert!(held < bytes_max, "{name} held {} MiB", held >> 20);
    }
    assert_eq!(agent.counts().in_order, count);
}

/// Maximum memory of the open streams of a worker.
const STREAMS_BYTES_MAX: u64 = 64 << 20;

/// Many open streamed answers take at most 64 MiB of a worker.
#[tokio::test(flavor = "multi_thread")]
async fn bounds_memory_of_open_streams() {
    let streams = ci_or_full(60, 1_000);
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    env.set("TIDEGATE_SLACK_APPEND_MIN_INTERVAL", "12ms");
    env.set("TIDEGATE_SLACK_STREAM_MIN_INTERVAL", "5ms");
    env.start_processes().await.expect("processes");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let ask = async |n: usize, text: &str| {
        let webhook = Webhook::message(&env.slack, &app, &format!("C{n}"), "U1", text);
        assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
        webhook
    };
    let first = ask(streams, "stream:3:10:8 please").await;
    env.wait_for_outcome(&first.dedup_key).await;
    let worker = &env.workers[0].process;
    let before = worker.peak_resident().expect("it runs");
    for n in 0..streams {
        ask(n, "stream:3000:1000:100 please").await;
    }
    let open = async || {
        let open = "select count(*) from runs where segment = 'open' and parts > 1";
        let open: i64 = sqlx::query_scalar(open).fetch_one(&env.pool).await.ok()?;
        (open >= streams as i64).then_some(())
    };
    eventually("all answers are open", Duration::from_secs(300), open).await;
    let grew = worker.peak_resident().expect("it did not die").saturating_sub(before);
    println!("{streams} open streams: {} KiB", grew >> 10);
    assert!(grew < STREAMS_BYTES_MAX, "{} MiB", grew >> 20);
}
