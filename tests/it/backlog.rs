//! Much that waits for one agent: workers stay small, other tenants do not notice, and it is delivered when the agent returns.
//!
//! With `TIDEGATE_FULL_SIZE` there are 1,000,000 conversations and 100,000 messages in one more; `TIDEGATE_BIN_DIR` names release
//! builds, which that takes. What was measured is printed with `--nocapture`.

use shared::{
    partition::{Conversation, Partition},
    types::{ConnectionId, Kind},
};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tests::{
    counter::CountingAgent,
    provision::new_agent,
    size::ci_or_full,
    slack::webhook::Webhook,
    until::until,
    world::{App, LEASE_TTL, PAIR, SOON, Size, World, agent_id},
};

/// Calls that the agent takes at once.
const CALLS_AT_ONCE: usize = 48;
/// Time that it takes to answer when it has returned, until as many calls overlap as may; and afterwards.
const AGENT_TAKES: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(5)];
/// No worker holds more.
const WORKER_BYTES_MAX: u64 = 256 << 20;
/// Another tenant is answered within this while all of it waits.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// Its messages.
const MESSAGES_OF_ANOTHER: usize = 12;

/// Stores messages in as many threads, over all partitions, and so many in one direct message.
async fn store(world: &World, places: &[(App, String)], threads: usize, deep: usize) {
    let message = |app: &App, channel: &str, text: &str, ts: &str| {
        Webhook::said_unkept(&world.slack, app, "message", channel, "U1", text, ts)
    };
    let in_threads = (0..threads).map(|n| {
        let (app, channel) = &places[n % places.len()];
        let ts = world.slack.ts();
        let webhook = message(app, channel, &format!("{}/0", n + 1), &ts);
        webhook.envelope(app, channel, Conversation::Thread(channel, &ts), Kind::Event)
    });
    let (app, channel) = (&places[0].0, "D1");
    let in_one = (0..deep).map(|n| {
        let webhook = message(app, channel, &format!("0/{n}"), &world.slack.ts());
        webhook.envelope(app, channel, Conversation::DirectMessage(channel), Kind::Event)
    });
    world.publish(in_one.chain(in_threads)).await.expect("they are stored");
}

async fn count(world: &World, sql: &'static str) -> usize {
    let count: i64 = sqlx::query_scalar(sql).fetch_one(&world.pool).await.expect("a count");
    count as usize
}

/// Bytes that each worker held at most since it started.
fn largest_worker(world: &World) -> u64 {
    let peaks = world.workers.iter().map(|worker| worker.process.peak_resident());
    let largest = peaks.map(|peak| peak.expect("it runs")).max().expect("workers");
    println!("a worker held {} MiB at most", largest >> 20);
    assert!(largest < WORKER_BYTES_MAX, "a worker held {} MiB", largest >> 20);
    largest
}

fn unix() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |age| age.as_secs_f64())
}

/// Another tenant, with channels in a partition of this worker.
async fn tenant_of(world: &World, worker: &str) -> (App, Vec<String>) {
    let owned: Vec<i16> =
        sqlx::query_scalar("select partition from partition_cursors where owner = $1")
            .bind(worker)
            .fetch_all(&world.pool)
            .await
            .expect("partitions");
    let channels = |id: ConnectionId| {
        let all = (0..400).map(|n| format!("D{n:06}"));
        let there = all
            .filter(|channel| owned.contains(&(Partition::of(id, Some(channel)).number() as i16)));
        there.take(8).collect::<Vec<_>>()
    };
    let ids = std::iter::repeat_with(|| ConnectionId::random().expect("randomness"));
    let (id, channels) =
        ids.map(|id| (id, channels(id))).find(|(_, there)| !there.is_empty()).expect("endless");
    let app = world.connect_as(|new| (new.id, new.agent) = (id, Some(agent_id())));
    (app.await.expect("a connection"), channels)
}

/// The time until another tenant hears the answer to its message.
async fn answered(world: &World, app: &App, channel: &str, text: &str) -> Duration {
    let webhook = Webhook::message(&world.slack, app, channel, "U1", text);
    let (heard, began) = (format!("I heard: {text}"), Instant::now());
    assert_eq!(world.send(app, &webhook).await.expect("an answer").status, 200);
    world.slack.told("the answer", |r| r.to == channel && r.text() == heard).await;
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn backlog_of_an_agent_that_is_away_costs_others_nothing() {
    let (threads, deep) = ci_or_full((4_000, 400), (1_000_000, 100_000));
    let all = threads + deep;
    let patiently = Duration::from_secs(ci_or_full(90, 3_600));
    let size = Size { own_postgres: true, ..PAIR };
    let mut world = World::synced_seldom(size).await.expect("servers");
    world.change_stream(|stream| stream.max_bytes = 8 << 30).await.expect("room");
    world.start_processes().await.expect("processes");
    let agent = CountingAgent::start().await.expect("an agent");
    agent.set_away(true);
    let places = world.connect_everywhere().await.expect("connections");
    let mut new = new_agent(&places[0].0.org, agent_id(), agent.url()).expect("an agent");
    new.max_concurrent = CALLS_AT_ONCE as u16;
    new.retry_for = Some(Duration::from_secs(24 * 3600));
    world.store.put_agent(&new).await.expect("Postgres");

    let began = Instant::now();
    store(&world, &places, threads, deep).await;
    let stored = began.elapsed();
    until("all of it waits", patiently, async || {
        let waits = "select coalesce(sum(tail - head + 1), 0)::bigint from delivery_lanes";
        (count(&world, waits).await == all).then_some(())
    })
    .await;
    println!("{all} stored in {stored:?}, committed after {:?}", began.elapsed());
    largest_worker(&world);

    let (other, channels) = tenant_of(&world, &world.workers[0].id).await;
    let mut slowest = Duration::ZERO;
    for (n, channel) in channels.iter().cycle().take(MESSAGES_OF_ANOTHER).enumerate() {
        let took = answered(&world, &other, channel, &format!("message {n}")).await;
        slowest = slowest.max(took);
    }
    println!("slowest answer to another tenant while all of it waits: {slowest:?}");
    assert!(slowest < ANSWERED_WITHIN, "{slowest:?}");

    let killed = unix();
    world.workers[0].process.kill();
    let webhook = Webhook::message(&world.slack, &other, &channels[0], "U1", "after the kill");
    assert_eq!(world.send(&other, &webhook).await.expect("an answer").status, 200);
    let committed = until("it is committed", SOON, async || {
        sqlx::query_scalar::<_, f64>(
            "select extract(epoch from inserted_at)::float8 from deliveries where dedup_key = $1
             union all
             select extract(epoch from inserted_at)::float8 from delivery_log where dedup_key = $1",
        )
        .bind(webhook.dedupe.as_str())
        .fetch_optional(&world.pool)
        .await
        .unwrap_or_default()
    })
    .await;
    let took = Duration::from_secs_f64((committed - killed).max(0.0));
    println!("first commit of another tenant after kill -9: {took:?}");
    assert!(took <= LEASE_TTL + Duration::from_secs(1), "{took:?}");
    world.workers[0].process.restart().expect("it starts again");
    world.settled().await.expect("both own partitions");

    agent.set_takes(AGENT_TAKES[0]);
    agent.set_away(false);
    // The next probe, which may be a minute away.
    sqlx::query("update agent_health set probe_at = now()")
        .execute(&world.pool)
        .await
        .expect("a probe");
    let began = Instant::now();
    until("its limit is reached", SOON, async || {
        (agent.counted().most >= CALLS_AT_ONCE).then_some(())
    })
    .await;
    agent.set_takes(AGENT_TAKES[1]);
    until("all of it is delivered", patiently, async || {
        // Counting costs Postgres something, too.
        tokio::time::sleep(Duration::from_millis(ci_or_full(100, 5_000))).await;
        (count(&world, "select count(*) from deliveries").await == 0).then_some(())
    })
    .await;
    let (took, counted) = (began.elapsed(), agent.counted());
    let rate = all as f64 / took.as_secs_f64();
    println!("delivered in {took:?}, {rate:.0}/s: {counted:?}");
    assert_eq!((counted.in_order, counted.skipped), (all, 0), "{counted:?}");
    assert_eq!(counted.most, CALLS_AT_ONCE, "calls at once");
    assert_eq!(count(&world, "select count(*) from dead_letters").await, 0);
    largest_worker(&world);
}
