//! A worker that is told to stop, or dies: its partitions go on elsewhere, and calls that end in time are not repeated.

use shared::{partition::Conversation, types::Kind};
use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};
use tests::{
    counter::CountingAgent,
    provision::new_agent,
    slack::webhook::Webhook,
    until::until,
    world::{App, LEASE_TTL, PAIR, SOON, Worker, World, agent_id},
};

/// No partition stands still for longer when its worker is told to stop.
const STANDS_STILL: Duration = Duration::from_millis(500);
/// How long calls to agents take.
const CALL: Duration = Duration::from_secs(20);
/// Calls that run when a worker is told to stop.
const CALLS: usize = 16;
/// Load before the blow, and between two.
const CALM: Duration = Duration::from_secs(1);

/// Two workers, and a tenant with a channel in each partition whose agent answers at once.
async fn pair() -> (World, Vec<(App, String)>) {
    let mut world = World::without_processes(PAIR).await.expect("servers");
    world.set("TIDEGATE_GRACE", "30s");
    world.start_processes().await.expect("processes");
    let places = world.connect_everywhere().await.expect("connections");
    let agent = CountingAgent::start().await.expect("an agent");
    let agent = new_agent(&places[0].0.org, agent_id(), agent.url()).expect("an agent");
    world.store.put_agent(&agent).await.expect("Postgres");
    (world, places)
}

/// Stores a message in each partition in turn, a hundred a second, until `over`.
async fn load(world: &World, places: &[(App, String)], over: &AtomicBool) {
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    for (app, channel) in places.iter().cycle() {
        if over.load(Relaxed) {
            break;
        }
        pace.tick().await;
        let ts = world.slack.ts();
        let text = "hello";
        let webhook = Webhook::said_unkept(&world.slack, app, "message", channel, "U1", text, &ts);
        let thread = Conversation::Thread(channel, &ts);
        let envelope = webhook.envelope(app, channel, thread, Kind::Event);
        world.publish([envelope]).await.expect("it is stored");
    }
}

/// The longest that a webhook stored after `since`, by Postgres's clock, waited for its commit.
async fn longest_wait(world: &World, places: &[(App, String)], since: f64) -> Duration {
    let connections: Vec<String> =
        places.iter().map(|(app, _)| app.connection.to_string()).collect();
    let seconds: f64 = sqlx::query_scalar(
        "select coalesce(max(extract(epoch from inserted_at - stored_at)), 0)::float8
           from (select connection_id, stored_at, inserted_at from delivery_log
                 union all select connection_id, stored_at, inserted_at from deliveries) d
          where connection_id = any ($1) and stored_at > to_timestamp($2)",
    )
    .bind(&connections)
    .bind(since)
    .fetch_one(&world.pool)
    .await
    .expect("waits");
    Duration::from_secs_f64(seconds.max(0.0))
}

async fn now(world: &World) -> f64 {
    let now = sqlx::query_scalar("select extract(epoch from clock_timestamp())::float8");
    now.fetch_one(&world.pool).await.expect("a time")
}

/// Strikes under load, and gives the longest that a partition stood still.
async fn standstill(
    world: &World,
    places: &[(App, String)],
    lasting: Duration,
    strike: impl FnOnce(),
) -> Duration {
    let over = AtomicBool::new(false);
    let striking = async {
        tokio::time::sleep(CALM).await;
        let since = now(world).await;
        strike();
        tokio::time::sleep(lasting + CALM).await;
        over.store(true, Relaxed);
        since
    };
    let ((), since) = tokio::join!(load(world, places, &over), striking);
    let stored = world.stored().await.expect("a count");
    until("all of it is committed", SOON, async || {
        let committed = "select sum(messages)::bigint from partition_cursors";
        let committed: i64 = sqlx::query_scalar(committed).fetch_one(&world.pool).await.ok()?;
        (committed as u64 >= stored).then_some(())
    })
    .await;
    longest_wait(world, places, since).await
}

/// Strikes the first worker until no partition stood still for longer than `bound`, at most three times: other work of the
/// machine may hit any of them.
async fn stands_still_at_most(
    world: &World,
    places: &[(App, String)],
    bound: Duration,
    lasting: Duration,
    strike: impl Fn(&Worker),
) {
    let worker = &world.workers[0];
    let mut all = Vec::new();
    for _ in 0..3 {
        if !worker.process.is_running() {
            worker.process.restart().expect("it starts again");
        }
        world.settled().await.expect("both own partitions");
        all.push(standstill(world, places, lasting, || strike(worker)).await);
        println!("the longest that a partition stood still: {:?}", all.last());
        if all.last() <= Some(&bound) {
            return;
        }
        worker.process.wait(SOON).await.expect("it ends");
    }
    panic!("partitions stood still for {all:?}");
}

/// Calls of an agent that run on this worker.
async fn running_on(world: &World, worker: &Worker, app: &App) -> i64 {
    sqlx::query_scalar(
        "select count(*) from agent_slots s join workers w on w.id = s.worker where w.name = $1 and s.org_id = $2",
    )
    .bind(&worker.id)
    .bind(app.org.as_str())
    .fetch_one(&world.pool)
    .await
    .expect("a count")
}

#[tokio::test(flavor = "multi_thread")]
async fn stopped_worker_lets_calls_end_and_partitions_go_on() {
    let (world, places) = pair().await;
    let slow = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let text = format!("slow:{} x", CALL.as_millis());
    for n in 0..CALLS {
        let webhook = Webhook::message(&world.slack, &slow, &format!("D{n}"), "U1", &text);
        assert_eq!(world.send(&slow, &webhook).await.expect("an answer").status, 200);
    }
    until("all calls run", SOON, async || (world.agent.asked().len() == CALLS).then_some(())).await;
    let told = &world.workers[0];
    let running = running_on(&world, told, &slow).await;
    assert!(running > 0, "none of the calls is of the worker that is told to stop");
    let stood = standstill(&world, &places, CALM, || told.process.terminate()).await;
    println!("{running} calls were running; a partition stood still for {stood:?} at most");
    assert!(told.process.is_running(), "it waits for its calls");

    let status = told.process.wait(CALL + SOON).await.expect("it ends");
    assert!(status.success(), "{status}\n{}", told.process.log());
    until("every call is answered", CALL + SOON, async || {
        let heard = world.slack.receipts().into_iter().filter(|r| r.by == "chat.postMessage");
        (heard.filter(|r| r.text().contains(&text)).count() >= CALLS).then_some(())
    })
    .await;
    let mut calls = HashMap::new();
    for asked in world.agent.asked() {
        *calls.entry(asked.id).or_insert(0) += 1;
    }
    assert_eq!(calls.len(), CALLS);
    assert!(calls.values().all(|count| *count == 1), "a call was repeated: {calls:?}");
    if stood > STANDS_STILL {
        let stop = |worker: &Worker| worker.process.terminate();
        stands_still_at_most(&world, &places, STANDS_STILL, CALM, stop).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_workers_partitions_go_on_within_the_ttl() {
    let (world, places) = pair().await;
    let bound = LEASE_TTL + Duration::from_secs(1);
    let kill = |worker: &Worker| worker.process.kill();
    stands_still_at_most(&world, &places, bound, bound, kill).await;
}
