//! Workers that are stopped or killed: other workers continue their partitions, and calls that end
//! in time are not repeated.

use shared::{domain::WebhookKind, stream::Conversation};
use std::{
    collections::HashMap,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::Duration,
};
use tests::{
    counter::CountingAgent,
    eventually::eventually,
    provision::new_agent,
    slack::webhook::Webhook,
    test_env::{App, LEASE_TTL, PAIR, Role, SMALL, Server, TIMEOUT, TestEnv, Worker, agent_id},
};

/// Maximum stall of a partition when its worker is stopped.
const STALL_MAX: Duration = Duration::from_millis(500);
/// Duration of calls of agents.
const CALL: Duration = Duration::from_secs(20);
/// Calls of agents that run when a worker is stopped.
const CALLS: usize = 16;
/// Time of load before and after a fault.
const CALM: Duration = Duration::from_secs(1);

/// Starts two workers, and a tenant with a channel in each partition and a fast agent.
async fn start_pair() -> (TestEnv, Vec<(App, String)>) {
    let mut env = TestEnv::without_processes(PAIR).await.expect("servers");
    env.set("TIDEGATE_SHUTDOWN_GRACE_PERIOD", "30s");
    env.start_processes().await.expect("processes");
    let places = env.connect_all_partitions().await.expect("connections");
    let agent = CountingAgent::start().await.expect("an agent");
    let agent = new_agent(&places[0].0.org, agent_id(), agent.url()).expect("an agent");
    env.store.put_agent(&agent).await.expect("Postgres");
    (env, places)
}

/// Stores messages in the partitions in turn, a hundred per second, until `over`.
async fn send_load(env: &TestEnv, places: &[(App, String)], over: &AtomicBool) {
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    for (app, channel) in places.iter().cycle() {
        if over.load(Relaxed) {
            break;
        }
        pace.tick().await;
        let ts = env.slack.ts();
        let text = "hello";
        let webhook =
            Webhook::unrecorded_message_event(&env.slack, app, "message", channel, "U1", text, &ts);
        let thread = Conversation::Thread(channel, &ts);
        let envelope = webhook.envelope(app, channel, thread, WebhookKind::Event);
        env.publish([envelope]).await.expect("it is stored");
    }
}

/// Returns the longest wait for the commit of a webhook stored after `since`, by Postgres's clock.
async fn longest_wait(env: &TestEnv, places: &[(App, String)], since: f64) -> Duration {
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
    .fetch_one(&env.pool)
    .await
    .expect("waits");
    Duration::from_secs_f64(seconds.max(0.0))
}

async fn postgres_now(env: &TestEnv) -> f64 {
    let now = sqlx::query_scalar("select extract(epoch from clock_timestamp())::float8");
    now.fetch_one(&env.pool).await.expect("a time")
}

/// Injects a fault under load and returns the longest stall of a partition.
async fn measure_stall(
    env: &TestEnv,
    places: &[(App, String)],
    lasting: Duration,
    inject: impl FnOnce(),
) -> Duration {
    let over = AtomicBool::new(false);
    let striking = async {
        tokio::time::sleep(CALM).await;
        let since = postgres_now(env).await;
        inject();
        tokio::time::sleep(lasting + CALM).await;
        over.store(true, Relaxed);
        since
    };
    let ((), since) = tokio::join!(send_load(env, places, &over), striking);
    let stored = env.stored().await.expect("a count");
    eventually("all webhooks are committed", TIMEOUT, async || {
        let committed = "select sum(messages)::bigint from partition_cursors";
        let committed: i64 = sqlx::query_scalar(committed).fetch_one(&env.pool).await.ok()?;
        (committed as u64 >= stored).then_some(())
    })
    .await;
    longest_wait(env, places, since).await
}

/// Injects a fault into the first worker until no partition stalls longer than `bound`, at most
/// three times, because other load of the machine may interfere.
async fn assert_stall_at_most(
    env: &TestEnv,
    places: &[(App, String)],
    bound: Duration,
    lasting: Duration,
    inject: impl Fn(&Worker),
) {
    let worker = &env.workers[0];
    let mut all = Vec::new();
    for _ in 0..3 {
        if !worker.process.is_running() {
            worker.process.restart().expect("it starts again");
        }
        env.wait_until_balanced().await.expect("both own partitions");
        all.push(measure_stall(env, places, lasting, || inject(worker)).await);
        println!("the longest stall of a partition: {:?}", all.last());
        if all.last() <= Some(&bound) {
            return;
        }
        worker.process.wait(TIMEOUT).await.expect("it ends");
    }
    panic!("partitions stalled for {all:?}");
}

/// Returns the number of an agent's calls that run on a worker.
async fn count_running(env: &TestEnv, worker: &Worker, app: &App) -> i64 {
    sqlx::query_scalar(
        "select count(*) from agent_slots s join workers w on w.id = s.worker where w.name = $1 and s.org_id = $2",
    )
    .bind(&worker.id)
    .bind(app.org.as_str())
    .fetch_one(&env.pool)
    .await
    .expect("a count")
}

/// A worker that is stopped finishes its calls of agents, each made once, while another worker
/// continues its partitions within 500 ms.
#[tokio::test(flavor = "multi_thread")]
async fn finishes_calls_on_stop() {
    let (env, places) = start_pair().await;
    let slow = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let text = format!("slow:{} x", CALL.as_millis());
    for n in 0..CALLS {
        let webhook = Webhook::message(&env.slack, &slow, &format!("D{n}"), "U1", &text);
        assert_eq!(env.send(&slow, &webhook).await.expect("an answer").status, 200);
    }
    eventually("all calls run", TIMEOUT, async || {
        (env.agent.requests().len() == CALLS).then_some(())
    })
    .await;
    let stopped = &env.workers[0];
    let running = count_running(&env, stopped, &slow).await;
    assert!(running > 0, "none of the calls is of the worker that is stopped");
    let stall = measure_stall(&env, &places, CALM, || stopped.process.terminate()).await;
    println!("{running} calls were running; the longest stall of a partition: {stall:?}");
    assert!(stopped.process.is_running(), "the worker waits for its calls");

    let status = stopped.process.wait(CALL + TIMEOUT).await.expect("it ends");
    assert!(status.success(), "{status}\n{}", stopped.process.log());
    eventually("every call is answered", CALL + TIMEOUT, async || {
        let answers = env.slack.receipts().into_iter().filter(|r| r.by == "chat.postMessage");
        (answers.filter(|r| r.text().contains(&text)).count() >= CALLS).then_some(())
    })
    .await;
    let mut calls = HashMap::new();
    for asked in env.agent.requests() {
        *calls.entry(asked.id).or_insert(0) += 1;
    }
    assert_eq!(calls.len(), CALLS);
    assert!(calls.values().all(|count| *count == 1), "a call was repeated: {calls:?}");
    if stall > STALL_MAX {
        let stop = |worker: &Worker| worker.process.terminate();
        assert_stall_at_most(&env, &places, STALL_MAX, CALM, stop).await;
    }
}

/// After a kill no partition stalls for longer than the lease TTL and a second.
#[tokio::test(flavor = "multi_thread")]
async fn moves_partitions_within_ttl() {
    let (env, places) = start_pair().await;
    let bound = LEASE_TTL + Duration::from_secs(1);
    let kill = |worker: &Worker| worker.process.kill();
    assert_stall_at_most(&env, &places, bound, bound, kill).await;
}

/// A worker that is stopped while Postgres is unreachable ends in time and without a panic.
#[tokio::test(flavor = "multi_thread")]
async fn stops_without_postgres() {
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    let link = env.link_through_proxy(Role::Worker, Server::Postgres).await.expect("a link");
    env.start_worker().await.expect("a worker");
    env.wait_until_balanced().await.expect("it owns all partitions");
    link.cut();
    let worker = &env.workers[0].process;
    worker.terminate();
    worker.wait(TIMEOUT).await.expect("it ends");
    assert!(!worker.log().contains("panicked"), "{}", worker.log());
}
