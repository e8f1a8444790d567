//! Isolation of tenants: one whose agent is slow or silent delays no other in the same partitions.
//!
//! A is the tenant with that agent, and each of its messages is a thread of its own; B is the
//! other. With `TIDEGATE_FULL_SIZE` A sends for 90 s instead of 15, and 33,000 messages instead of
//! 3,300. The slowest answers are printed with `--nocapture`.

use futures_util::{StreamExt, stream};
use shared::{domain::ConnectionId, stream::Partition};
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};
use tests::{
    eventually::eventually,
    size::ci_or_full,
    slack::{Receipt, webhook::Webhook},
    test_env::{App, SMALL, TIMEOUT, TestEnv, agent_id},
};

/// Message that the agent answers after 15 s.
const SLOW: &str = "slow:15000 x";
/// Message that the agent never answers: each attempt times out.
const SILENT: &str = "slow:600000 x";
/// Limit of the time from sending a message or command of B to its answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// Pause between two messages of B.
const PAUSE: Duration = Duration::from_millis(200);
/// Messages and commands of B after all of A's are sent.
const AFTERWARDS: usize = 20;
/// Concurrent messages of A.
const AT_ONCE: usize = 62;

/// Connects B. Returns it with channels in these partitions.
async fn connect_tenant(env: &TestEnv, partitions: &[Partition]) -> (App, Vec<String>) {
    let channels = |id: ConnectionId| {
        let all = (0..400).map(|n| format!("D{n:06}"));
        let there = all.filter(|channel| partitions.contains(&Partition::of(id, Some(channel))));
        there.take(8).collect::<Vec<_>>()
    };
    let ids = std::iter::repeat_with(|| ConnectionId::random().expect("randomness"));
    let (id, channels) = ids
        .map(|id| (id, channels(id)))
        .find(|(_, there)| !there.is_empty())
        .expect("ids are endless");
    let b = env.connect_as(|new| (new.id, new.agent) = (id, Some(agent_id())));
    (b.await.expect("a connection"), channels)
}

/// Sends a webhook of B and waits for its answer.
async fn send_and_wait(
    env: &TestEnv,
    b: &App,
    webhook: &Webhook,
    is_reply: impl Fn(&Receipt) -> bool,
) -> Duration {
    let began = Instant::now();
    assert_eq!(env.send(b, webhook).await.expect("an answer").status, 200);
    env.slack.wait_for_receipt(&format!("B gets a reply to {}", webhook.what), is_reply).await;
    began.elapsed()
}

/// Sends messages and commands of B until all of A's are sent, and some more. Returns the slowest
/// answer to each.
async fn send_as_other(
    env: &TestEnv,
    b: &App,
    channels: &[String],
    sent: &AtomicBool,
) -> [Duration; 2] {
    let (mut slowest, mut after) = ([Duration::ZERO; 2], 0);
    for (n, channel) in channels.iter().cycle().enumerate() {
        after += usize::from(sent.load(Relaxed));
        if after > AFTERWARDS {
            break;
        }
        let text = format!("b {n}");
        let message = Webhook::message(&env.slack, b, channel, "U1", &text);
        let expected = format!("I heard: {text}");
        let took =
            send_and_wait(env, b, &message, |r| r.to == *channel && r.text() == expected).await;
        slowest[0] = slowest[0].max(took);
        let command = Webhook::command(&env.slack, b, channel, "U1", "/lobu", "help");
        let took = send_and_wait(env, b, &command, |r| command.response_url.ends_with(&r.to)).await;
        slowest[1] = slowest[1].max(took);
        tokio::time::sleep(PAUSE).await;
    }
    slowest
}

/// Connections of A, each with a channel.
type Places = [(App, String)];

/// Checks that everything of B is answered in time while `send` sends as A, and afterwards.
async fn assert_no_delay(env: &TestEnv, places: &Places, count: usize, send: impl AsyncFnOnce()) {
    let partitions: Vec<Partition> =
        places.iter().map(|(app, channel)| Partition::of(app.connection, Some(channel))).collect();
    let (b, channels) = connect_tenant(env, &partitions).await;
    let sent = AtomicBool::new(false);
    let sending = async {
        send().await;
        sent.store(true, Relaxed);
    };
    let ([message, command], ()) = tokio::join!(send_as_other(env, &b, &channels, &sent), sending);
    println!("slowest answer to B: message {message:?}, command {command:?}");
    assert!(message < ANSWERED_WITHIN && command < ANSWERED_WITHIN, "{message:?} {command:?}");
    let waiting = "select count(*) from deliveries";
    let waiting = sqlx::query_scalar::<_, i64>(waiting).fetch_one(&env.pool).await;
    let waiting = waiting.expect("a count") as usize;
    assert!(waiting * 10 >= count * 8, "only {waiting} of {count} messages of A wait");
}

async fn send(env: &TestEnv, (app, channel): &(App, String), text: &str) {
    let webhook = Webhook::message(&env.slack, app, channel, "U1", text);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
}

/// Sends ten messages per second in one channel.
async fn run_at_even_rate(agent: &str) {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let a = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let (places, seconds) = ([(a, "C1".to_owned())], ci_or_full(15, 90));
    let count = 10 * seconds;
    // The agent has answered 16 messages for each 15 s.
    let left = if agent == SLOW { count - 16 * (seconds / 15 + 1) } else { count };
    assert_no_delay(&env, &places, left, async || {
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        for _ in 0..count {
            pace.tick().await;
            send(&env, &places[0], agent).await;
        }
    })
    .await;
}

/// Sends a burst of messages over these places.
async fn run_burst(env: &TestEnv, places: &Places, count: usize, agent: &str) {
    assert_no_delay(env, places, count, async || {
        stream::iter(0..count)
            .map(|n| send(env, &places[n % places.len()], agent))
            .buffer_unordered(AT_ONCE)
            .for_each(async |()| ())
            .await;
        eventually("all messages of A are committed", TIMEOUT, async || {
            let committed = "select sum(messages)::bigint from partition_cursors";
            let committed: i64 = sqlx::query_scalar(committed).fetch_one(&env.pool).await.ok()?;
            (committed as usize >= count).then_some(())
        })
        .await;
    })
    .await;
}

async fn run_in_channel(agent: &str) {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let a = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    run_burst(&env, &[(a, "C1".to_owned())], 620, agent).await;
}

async fn run_everywhere(agent: &str) {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let places = env.connect_all_partitions().await.expect("connections");
    run_burst(&env, &places, ci_or_full(3_300, 33_000), agent).await;
}

/// A slow agent that gets ten messages a second delays no other tenant.
#[tokio::test(flavor = "multi_thread")]
async fn isolates_slow_agent_at_even_rate() {
    run_at_even_rate(SLOW).await;
}

/// A silent agent that gets ten messages a second delays no other tenant.
#[tokio::test(flavor = "multi_thread")]
async fn isolates_silent_agent_at_even_rate() {
    run_at_even_rate(SILENT).await;
}

/// A burst of messages of one channel to a slow agent delays no other tenant.
#[tokio::test(flavor = "multi_thread")]
async fn isolates_slow_agent_in_channel() {
    run_in_channel(SLOW).await;
}

/// A burst of messages of one channel to a silent agent delays no other tenant.
#[tokio::test(flavor = "multi_thread")]
async fn isolates_silent_agent_in_channel() {
    run_in_channel(SILENT).await;
}

/// A burst of messages over all partitions to a slow agent delays no other tenant.
#[tokio::test(flavor = "multi_thread")]
async fn isolates_slow_agent_everywhere() {
    run_everywhere(SLOW).await;
}

/// A burst of messages over all partitions to a silent agent delays no other tenant.
#[tokio::test(flavor = "multi_thread")]
async fn isolates_silent_agent_everywhere() {
    run_everywhere(SILENT).await;
}
