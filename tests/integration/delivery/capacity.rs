//! Places of a worker for attempts: organizations with slow agents leave some to others, and no
//! delivery is claimed without one.

use futures_util::{StreamExt, stream};
use std::time::{Duration, Instant};
use tests::{
    eventually::eventually,
    provision::new_agent,
    slack::webhook::Webhook,
    test_env::{App, SMALL, TIMEOUT, TestEnv, agent_id},
};

/// Organizations with slow agents. Their slots are more than a worker's 192 background places.
const SLOW_ORGANIZATIONS: usize = 16;
/// Slots of an agent.
const SLOTS: usize = 16;
/// Background places of a worker that several organizations may hold.
const OPEN_TO_ALL: usize = 144;
/// Maximum attempts of one organization on a worker.
const ORGANIZATION_MAX: usize = 128;
/// Limit of the time from a message of another organization to its answer.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// The agent answers after the test.
const SLOW: &str = "slow:60000 x";
/// Concurrent requests of the test.
const AT_ONCE: usize = 32;

async fn send(env: &TestEnv, app: &App, text: &str) {
    let webhook = Webhook::message(&env.slack, app, "C1", "U1", text);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
}

async fn send_slow(env: &TestEnv, apps: &[App], each: usize) {
    stream::iter(0..apps.len() * each)
        .map(|n| send(env, &apps[n % apps.len()], SLOW))
        .buffer_unordered(AT_ONCE)
        .for_each(async |()| ())
        .await;
}

async fn count(env: &TestEnv, sql: &'static str) -> usize {
    sqlx::query_scalar::<_, i64>(sql).fetch_one(&env.pool).await.expect("a count") as usize
}

async fn wait_for_running(env: &TestEnv, at_least: usize) {
    eventually(&format!("{at_least} attempts run"), TIMEOUT, async || {
        let running = "select count(*) from delivery_lanes where worker is not null";
        (count(env, running).await >= at_least).then_some(())
    })
    .await;
}

/// Checks that no delivery was claimed without a place and released again.
async fn assert_none_released(env: &TestEnv) {
    let released = "select count(*) from delivery_lanes where last_error like '%no capacity%'";
    assert_eq!(count(env, released).await, 0, "deliveries were claimed without a place");
}

/// A message of another organization is answered within two seconds, although 16 organizations with
/// slow agents want more places than a worker has.
#[tokio::test(flavor = "multi_thread")]
async fn leaves_places_to_others() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let mut slow = Vec::new();
    for _ in 0..SLOW_ORGANIZATIONS {
        slow.push(env.connect_as(|new| new.agent = Some(agent_id())).await.expect("connected"));
    }
    let neighbour = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("connected");
    send_slow(&env, &slow, SLOTS + 4).await;
    wait_for_running(&env, OPEN_TO_ALL).await;
    for n in 0..10 {
        let (text, began) = (format!("neighbour {n}"), Instant::now());
        send(&env, &neighbour, &text).await;
        let expected = format!("I heard: {text}");
        env.slack.wait_for_receipt("the neighbour is answered", |r| r.text() == expected).await;
        let took = began.elapsed();
        assert!(took < ANSWERED_WITHIN, "message {n} of the neighbour was answered after {took:?}");
    }
    assert_none_released(&env).await;
}

/// A worker claims no delivery of an organization beyond its limit, so that none has to be
/// released.
#[tokio::test(flavor = "multi_thread")]
async fn claims_within_organization_limit() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("connected");
    let mut agent = new_agent(&app.org, agent_id(), env.agent.url()).expect("an agent");
    agent.max_concurrent = 250;
    env.store.put_agent(&agent).await.expect("Postgres");
    send_slow(&env, std::slice::from_ref(&app), ORGANIZATION_MAX + 40).await;
    wait_for_running(&env, ORGANIZATION_MAX).await;
    // Each poll of dispatch, once a second, would claim the rest and release it.
    for _ in 0..30 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let running = "select count(*) from delivery_lanes where worker is not null";
        assert!(count(&env, running).await <= ORGANIZATION_MAX);
        assert_none_released(&env).await;
    }
}
