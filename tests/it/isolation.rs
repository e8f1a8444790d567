//! A tenant whose agent is slow, or never answers, delays no other tenant in the same partitions.
//!
//! A is the tenant with that agent, and each of its messages is a thread of its own; B is the other. With `TIDEGATE_FULL_SIZE`
//! A sends for 90 s in place of 15, and 33,000 messages in place of 3,300. The slowest answers are printed with `--nocapture`.

use futures_util::{StreamExt, stream};
use shared::{partition::Partition, types::ConnectionId};
use std::{
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};
use tests::{
    size::ci_or_full,
    slack::{Receipt, webhook::Webhook},
    until::until,
    world::{App, SMALL, SOON, World, agent_id},
};

/// The agent answers after 15 s.
const SLOW: &str = "slow:15000 x";
/// The agent never answers: the worker gives each attempt up.
const NEVER: &str = "slow:600000 x";
/// Limit of the time from sending a message or command of B to its answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// Pause between two messages of B.
const PAUSE: Duration = Duration::from_millis(200);
/// Messages and commands of B after all of A's are sent.
const AFTERWARDS: usize = 20;
/// Messages of A that are sent at the same time.
const AT_ONCE: usize = 62;

/// B, with channels in these partitions alone.
async fn tenant_in(world: &World, partitions: &[Partition]) -> (App, Vec<String>) {
    let channels = |id: ConnectionId| {
        let all = (0..400).map(|n| format!("D{n:06}"));
        let there = all.filter(|channel| partitions.contains(&Partition::of(id, Some(channel))));
        there.take(8).collect::<Vec<_>>()
    };
    let ids = std::iter::repeat_with(|| ConnectionId::random().expect("randomness"));
    let (id, channels) =
        ids.map(|id| (id, channels(id))).find(|(_, there)| !there.is_empty()).expect("endless");
    let b = world.connect_as(|new| (new.id, new.agent) = (id, Some(agent_id())));
    (b.await.expect("a connection"), channels)
}

/// Sends a webhook of B and waits until its person hears the answer.
async fn answered(
    world: &World,
    b: &App,
    webhook: &Webhook,
    heard: impl Fn(&Receipt) -> bool,
) -> Duration {
    let began = Instant::now();
    assert_eq!(world.send(b, webhook).await.expect("an answer").status, 200);
    world.slack.told(&format!("B hears of {}", webhook.what), heard).await;
    began.elapsed()
}

/// Messages and commands of B until all of A's are sent, and some more; gives the slowest answer to each.
async fn others(world: &World, b: &App, channels: &[String], sent: &AtomicBool) -> [Duration; 2] {
    let (mut slowest, mut after) = ([Duration::ZERO; 2], 0);
    for (n, channel) in channels.iter().cycle().enumerate() {
        after += usize::from(sent.load(Relaxed));
        if after > AFTERWARDS {
            break;
        }
        let text = format!("b {n}");
        let message = Webhook::message(&world.slack, b, channel, "U1", &text);
        let heard = format!("I heard: {text}");
        let took = answered(world, b, &message, |r| r.to == *channel && r.text() == heard).await;
        slowest[0] = slowest[0].max(took);
        let command = Webhook::command(&world.slack, b, channel, "U1", "/lobu", "help");
        let took = answered(world, b, &command, |r| command.response_url.ends_with(&r.to)).await;
        slowest[1] = slowest[1].max(took);
        tokio::time::sleep(PAUSE).await;
    }
    slowest
}

/// Where A's messages go: its connections, each with a channel.
type Places = [(App, String)];

/// A sends; meanwhile, and afterwards, everything of B is answered in time.
async fn delays_no_other_tenant(
    world: &World,
    places: &Places,
    count: usize,
    send: impl AsyncFnOnce(),
) {
    let partitions: Vec<Partition> =
        places.iter().map(|(app, channel)| Partition::of(app.connection, Some(channel))).collect();
    let (b, channels) = tenant_in(world, &partitions).await;
    let sent = AtomicBool::new(false);
    let sending = async {
        send().await;
        sent.store(true, Relaxed);
    };
    let ([message, command], ()) = tokio::join!(others(world, &b, &channels, &sent), sending);
    println!("slowest answer to B: message {message:?}, command {command:?}");
    assert!(message < ANSWERED_WITHIN && command < ANSWERED_WITHIN, "{message:?} {command:?}");
    let waiting = "select count(*) from deliveries";
    let waiting = sqlx::query_scalar::<_, i64>(waiting).fetch_one(&world.pool).await;
    let waiting = waiting.expect("a count") as usize;
    assert!(waiting * 10 >= count * 8, "only {waiting} of {count} messages of A wait");
}

async fn send(world: &World, (app, channel): &(App, String), text: &str) {
    let webhook = Webhook::message(&world.slack, app, channel, "U1", text);
    assert_eq!(world.send(app, &webhook).await.expect("an answer").status, 200);
}

/// Ten a second in one channel.
async fn at_an_even_rate(agent: &str) {
    let world = World::start(SMALL).await.expect("a world");
    let a = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let (places, seconds) = ([(a, "C1".to_owned())], ci_or_full(15, 90));
    let count = 10 * seconds;
    // Of those that have their answer the agent took 16 at once, each for 15 s.
    let left = if agent == SLOW { count - 16 * (seconds / 15 + 1) } else { count };
    delays_no_other_tenant(&world, &places, left, async || {
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        for _ in 0..count {
            pace.tick().await;
            send(&world, &places[0], agent).await;
        }
    })
    .await;
}

/// So many at once, over these places.
async fn at_once(world: &World, places: &Places, count: usize, agent: &str) {
    delays_no_other_tenant(world, places, count, async || {
        stream::iter(0..count)
            .map(|n| send(world, &places[n % places.len()], agent))
            .buffer_unordered(AT_ONCE)
            .for_each(async |()| ())
            .await;
        until("all messages of A are committed", SOON, async || {
            let committed = "select sum(messages)::bigint from partition_cursors";
            let committed: i64 = sqlx::query_scalar(committed).fetch_one(&world.pool).await.ok()?;
            (committed as usize >= count).then_some(())
        })
        .await;
    })
    .await;
}

async fn in_one_channel(agent: &str) {
    let world = World::start(SMALL).await.expect("a world");
    let a = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    at_once(&world, &[(a, "C1".to_owned())], 620, agent).await;
}

async fn in_every_partition(agent: &str) {
    let world = World::start(SMALL).await.expect("a world");
    let places = world.connect_everywhere().await.expect("connections");
    at_once(&world, &places, ci_or_full(3_300, 33_000), agent).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_agent_at_even_rate_delays_no_tenant() {
    at_an_even_rate(SLOW).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_agent_at_even_rate_delays_no_tenant() {
    at_an_even_rate(NEVER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_agent_in_one_channel_delays_no_tenant() {
    in_one_channel(SLOW).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_agent_in_one_channel_delays_no_tenant() {
    in_one_channel(NEVER).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_agent_everywhere_delays_no_tenant() {
    in_every_partition(SLOW).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_agent_everywhere_delays_no_tenant() {
    in_every_partition(NEVER).await;
}
