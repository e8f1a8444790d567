//! Backlog of one agent: memory of the workers, delay of other tenants, and delivery when the agent
//! returns.
//!
//! With `TIDEGATE_FULL_SIZE` there are 1,000,000 conversations and 100,000 messages in one more;
//! release builds in `TIDEGATE_BIN_DIR` are required. Measurements are printed with `--nocapture`.

use shared::{
    domain::{ConnectionId, WebhookKind},
    stream::{Conversation, Partition},
};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tests::{
    counter::CountingAgent,
    eventually::eventually,
    provision::new_agent,
    size::ci_or_full,
    slack::webhook::Webhook,
    test_env::{App, LEASE_TTL, PAIR, Size, TIMEOUT, TestEnv, agent_id},
};

/// Maximum number of concurrent calls of the agent.
const CALLS_AT_ONCE: usize = 48;
/// Answer time of the agent after its return until the maximum of calls overlap, and afterwards.
const ANSWER_TIMES: [Duration; 2] = [Duration::from_millis(500), Duration::from_millis(5)];
/// Maximum memory of a worker.
const WORKER_BYTES_MAX: u64 = 256 << 20;
/// Maximum answer time of another tenant during the backlog.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// Number of messages of the other tenant.
const OTHER_MESSAGES: usize = 12;

/// Stores messages in `threads` threads over all partitions, and `deep` messages in one direct
/// message.
async fn store_messages(env: &TestEnv, places: &[(App, String)], threads: usize, deep: usize) {
    let message = |app: &App, channel: &str, text: &str, ts: &str| {
        Webhook::unrecorded_message_event(&env.slack, app, "message", channel, "U1", text, ts)
    };
    let in_threads = (0..threads).map(|n| {
        let (app, channel) = &places[n % places.len()];
        let ts = env.slack.ts();
        let webhook = message(app, channel, &format!("{}/0", n + 1), &ts);
        webhook.envelope(app, channel, Conversation::Thread(channel, &ts), WebhookKind::Event)
    });
    let (app, channel) = (&places[0].0, "D1");
    let in_one = (0..deep).map(|n| {
        let webhook = message(app, channel, &format!("0/{n}"), &env.slack.ts());
        webhook.envelope(app, channel, Conversation::DirectMessage(channel), WebhookKind::Event)
    });
    env.publish(in_one.chain(in_threads)).await.expect("they are stored");
}

async fn count_rows(env: &TestEnv, sql: &'static str) -> usize {
    let count: i64 = sqlx::query_scalar(sql).fetch_one(&env.pool).await.expect("a count");
    count as usize
}

/// Returns the largest peak memory of a worker, in bytes. Fails above the maximum.
fn peak_memory(env: &TestEnv) -> u64 {
    let peaks = env.workers.iter().map(|worker| worker.process.peak_resident());
    let largest = peaks.map(|peak| peak.expect("it runs")).max().expect("workers");
    println!("a worker held {} MiB at most", largest >> 20);
    assert!(largest < WORKER_BYTES_MAX, "a worker held {} MiB", largest >> 20);
    largest
}

fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |age| age.as_secs_f64())
}

/// Connects another tenant. Returns it with channels in partitions of this worker.
async fn connect_tenant(env: &TestEnv, worker: &str) -> (App, Vec<String>) {
    let owned: Vec<i16> =
        sqlx::query_scalar("select partition from partition_cursors where owner = $1")
            .bind(worker)
            .fetch_all(&env.pool)
            .await
            .expect("partitions");
    let channels = |id: ConnectionId| {
        let all = (0..400).map(|n| format!("D{n:06}"));
        let there = all
            .filter(|channel| owned.contains(&(Partition::of(id, Some(channel)).number() as i16)));
        there.take(8).collect::<Vec<_>>()
    };
    let ids = std::iter::repeat_with(|| ConnectionId::random().expect("randomness"));
    let (id, channels) = ids
        .map(|id| (id, channels(id)))
        .find(|(_, there)| !there.is_empty())
        .expect("ids are endless");
    let app = env.connect_as(|new| (new.id, new.agent) = (id, Some(agent_id())));
    (app.await.expect("a connection"), channels)
}

/// Returns the time until another tenant gets the answer to a message.
async fn measure_answer(env: &TestEnv, app: &App, channel: &str, text: &str) -> Duration {
    let webhook = Webhook::message(&env.slack, app, channel, "U1", text);
    let (expected, began) = (format!("I heard: {text}"), Instant::now());
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
    env.slack.wait_for_receipt("the answer", |r| r.to == channel && r.text() == expected).await;
    began.elapsed()
}

/// A large backlog of one agent keeps workers within their memory, delays no other tenant, and is
/// delivered in order once the agent returns.
#[tokio::test(flavor = "multi_thread")]
async fn isolates_backlog_of_stopped_agent() {
    let (threads, deep) = ci_or_full((4_000, 400), (1_000_000, 100_000));
    let all = threads + deep;
    let patiently = Duration::from_secs(ci_or_full(90, 3_600));
    let size = Size { own_postgres: true, ..PAIR };
    let mut env = TestEnv::with_rare_sync(size).await.expect("servers");
    env.change_stream(|stream| stream.max_bytes = 8 << 30).await.expect("room");
    env.start_processes().await.expect("processes");
    let agent = CountingAgent::start().await.expect("an agent");
    agent.set_unavailable(true);
    let places = env.connect_all_partitions().await.expect("connections");
    let mut new = new_agent(&places[0].0.org, agent_id(), agent.url()).expect("an agent");
    new.max_concurrent = CALLS_AT_ONCE as u16;
    new.retry_for = Some(Duration::from_secs(24 * 3600));
    env.store.put_agent(&new).await.expect("Postgres");

    let began = Instant::now();
    store_messages(&env, &places, threads, deep).await;
    let stored = began.elapsed();
    eventually("all messages wait", patiently, async || {
        let waits = "select coalesce(sum(tail - head + 1), 0)::bigint from delivery_lanes";
        (count_rows(&env, waits).await == all).then_some(())
    })
    .await;
    println!("{all} stored in {stored:?}, committed after {:?}", began.elapsed());
    peak_memory(&env);

    let (other, channels) = connect_tenant(&env, &env.workers[0].id).await;
    let mut slowest = Duration::ZERO;
    for (n, channel) in channels.iter().cycle().take(OTHER_MESSAGES).enumerate() {
        let took = measure_answer(&env, &other, channel, &format!("message {n}")).await;
        slowest = slowest.max(took);
    }
    println!("slowest answer to another tenant while all of it waits: {slowest:?}");
    assert!(slowest < ANSWERED_WITHIN, "{slowest:?}");

    let killed = unix_seconds();
    env.workers[0].process.kill();
    let webhook = Webhook::message(&env.slack, &other, &channels[0], "U1", "after the kill");
    assert_eq!(env.send(&other, &webhook).await.expect("an answer").status, 200);
    let committed = eventually("the webhook is committed", TIMEOUT, async || {
        sqlx::query_scalar::<_, f64>(
            "select extract(epoch from inserted_at)::float8 from deliveries where dedup_key = $1
             union all
             select extract(epoch from inserted_at)::float8 from delivery_log where dedup_key = $1",
        )
        .bind(webhook.dedup_key.as_str())
        .fetch_optional(&env.pool)
        .await
        .unwrap_or_default()
    })
    .await;
    let took = Duration::from_secs_f64((committed - killed).max(0.0));
    println!("first commit of another tenant after kill -9: {took:?}");
    assert!(took <= LEASE_TTL + Duration::from_secs(1), "{took:?}");
    env.workers[0].process.restart().expect("it starts again");
    env.wait_until_balanced().await.expect("both own partitions");

    agent.set_answer_time(ANSWER_TIMES[0]);
    agent.set_unavailable(false);
    // The next probe may be a minute away.
    sqlx::query("update agent_health set probe_at = now()")
        .execute(&env.pool)
        .await
        .expect("a probe");
    let began = Instant::now();
    eventually("the agent's limit is reached", TIMEOUT, async || {
        (agent.counts().most >= CALLS_AT_ONCE).then_some(())
    })
    .await;
    agent.set_answer_time(ANSWER_TIMES[1]);
    eventually("all messages are delivered", patiently, async || {
        // Counting slows Postgres.
        tokio::time::sleep(Duration::from_millis(ci_or_full(100, 5_000))).await;
        (count_rows(&env, "select count(*) from deliveries").await == 0).then_some(())
    })
    .await;
    let (took, counted) = (began.elapsed(), agent.counts());
    let rate = all as f64 / took.as_secs_f64();
    println!("delivered in {took:?}, {rate:.0}/s: {counted:?}");
    assert_eq!((counted.in_order, counted.skipped), (all, 0), "{counted:?}");
    assert_eq!(counted.most, CALLS_AT_ONCE, "calls at once");
    assert_eq!(count_rows(&env, "select count(*) from dead_letters").await, 0);
    peak_memory(&env);
}
