//! Slack's rate limits: shared by all workers, and without effect on other workspaces.

use futures_util::future::join_all;
use shared::{domain::ConnectionStatus, store::NewConnection, stream::Partition};
use std::time::Duration;
use tests::{
    eventually::eventually,
    slack::{api::Outcome, limits::Limit, webhook::Webhook},
    test_env::{App, SMALL, Size, TIMEOUT, TestEnv, agent_id},
};

const FOUR_WORKERS: Size = Size { ingests: 1, workers: 4, own_postgres: false };
const POST: &str = "chat.postMessage";

fn use_sample_agent(new: &mut NewConnection) {
    new.agent = Some(agent_id());
}

async fn send_message(env: &TestEnv, app: &App, channel: &str, text: &str) {
    let webhook = Webhook::message(&env.slack, app, channel, "U1", text);
    assert_eq!(env.send(app, &webhook).await.expect("an answer").status, 200);
}

fn count_posts(env: &TestEnv, app: &App) -> usize {
    let by_bot =
        |call: &tests::slack::api::Call| call.team == app.team && call.outcome == Outcome::Accepted;
    env.slack.calls_of(POST).iter().filter(|call| by_bot(call)).count()
}

/// After a 429 none of four workers calls the method for that workspace too early. Another
/// workspace is answered at once.
#[tokio::test]
async fn shares_limit_between_workers() {
    let env = TestEnv::start(FOUR_WORKERS).await.expect("a test environment");
    let app = env.connect_as(use_sample_agent).await.expect("a connection");
    let other = env.connect_as(use_sample_agent).await.expect("a connection");
    env.slack.limit(vec![Limit::method(POST, 20, Duration::from_secs(4))]);
    let channels: Vec<String> = (0..26).map(|n| format!("C{n:04}")).collect();
    join_all(channels.iter().map(|channel| send_message(&env, &app, channel, "hello"))).await;
    let limited = || -> Vec<tests::slack::api::Call> {
        let mut calls = env.slack.calls_of(POST);
        calls.retain(|call| matches!(call.outcome, Outcome::RateLimited(_)));
        calls
    };
    let first =
        eventually("Slack limits the rate", TIMEOUT, async || limited().into_iter().next()).await;

    // Another workspace is not affected.
    send_message(&env, &other, "C1", "hello").await;
    eventually("the other workspace is answered", Duration::from_secs(3), async || {
        (count_posts(&env, &other) == 1).then_some(())
    })
    .await;

    eventually("all are posted", Duration::from_secs(60), async || {
        (count_posts(&env, &app) == 26).then_some(())
    })
    .await;
    // Each worker may have had one call running at the first 429.
    let limited = limited();
    assert!(limited.len() <= FOUR_WORKERS.workers, "{} calls were refused", limited.len());
    for call in &limited {
        assert!(first.before(call) < Duration::from_millis(250), "{:?}", first.before(call));
    }
}

/// Messages of a channel keep their order and the configured interval, so that Slack refuses none.
#[tokio::test]
async fn paces_messages_of_channel() {
    let mut env = TestEnv::without_processes(SMALL).await.expect("servers");
    env.set("TIDEGATE_SLACK_CHANNEL_MIN_INTERVAL", "1s");
    env.start_ingest().await.expect("an ingest");
    env.start_worker().await.expect("a worker");
    env.wait_until_balanced().await.expect("settled");
    let app = env.connect_as(use_sample_agent).await.expect("a connection");
    env.slack.limit(vec![Limit::channel(POST, 1, Duration::from_millis(900))]);
    for text in ["one", "two", "three", "four"] {
        send_message(&env, &app, "D1", text).await;
    }
    eventually("all are posted", TIMEOUT, async || (count_posts(&env, &app) == 4).then_some(()))
        .await;
    let calls = env.slack.calls_of(POST);
    assert_eq!(calls.len(), 4, "no call was refused");
    let texts: Vec<&str> = calls.iter().filter_map(|call| call.args["text"].as_str()).collect();
    assert_eq!(texts, ["one", "two", "three", "four"].map(|text| format!("I heard: {text}")));
}

/// After a rate limit a method gets one call per interval at first, and all waiting calls a minute
/// later.
#[tokio::test]
async fn resumes_slowly_after_limit() {
    let servers = Size { ingests: 0, workers: 0, own_postgres: false };
    let env = TestEnv::without_processes(servers).await.expect("servers");
    let connection = env.prepare(ConnectionStatus::Active).await.expect("a connection").connection;
    env.store.register_worker("w1", "one", Duration::from_secs(600)).await.expect("registered");
    // Nothing is sent, so the payloads need not be valid.
    for sql in [
        "insert into outbox_lanes (connection_id, lane, partition, head, tail, channel_key, turn, next_at)
         select $1, n, 0, 1, 1, 'C' || n, n, now() from generate_series(1, 4) n",
        "insert into outbox_channels (connection_id, channel_key, partition, pending, next_at)
         select $1, 'C' || n, 0, 1, now() from generate_series(1, 4) n",
        "insert into outbox (connection_id, lane, position, partition, channel_key, method, dedup_key, request)
         select $1, n, 1, 0, 'C' || n, 'chat.postMessage', 'key ' || n, 'sealed' from generate_series(1, 4) n",
    ] {
        sqlx::query(sql).bind(connection.to_string()).execute(&env.pool).await.expect("rows");
    }
    let partitions = [Partition::try_from(0).expect("there are 64")];
    let claim = async || {
        let claimed =
            env.store.claim_outbox_messages("w1", &partitions, None, 10, TIMEOUT, Duration::ZERO);
        let claimed = claimed.await.expect("an answer");
        let next_due = claimed.next_due.map(|due| due.as_secs_f64());
        (claimed.messages.len() + claimed.unreadable.len(), next_due)
    };
    let over_since = async |seconds: f64| {
        for sql in [
            "update slack_rate_limits set next_at = '-infinity', blocked_until = now() - make_interval(secs => $1)",
            "update outbox_channels set next_at = now() where next_at < 'infinity' and $1 > 0",
        ] {
            sqlx::query(sql).bind(seconds).execute(&env.pool).await.expect("moved");
        }
    };
    let thirty = Duration::from_secs(30);
    env.store.record_rate_limit(connection, POST, thirty).await.expect("the limit is recorded");
    let (none, due) = claim().await;
    assert!(none == 0 && due.is_some_and(|due| (25.0..=30.0).contains(&due)), "{due:?}");

    over_since(10.0).await;
    assert_eq!(claim().await.0, 1);
    let due = eventually("the other lanes are due", TIMEOUT, async || {
        let (rows, due) = claim().await;
        assert_eq!(rows, 0);
        due.filter(|due| *due > 0.1)
    })
    .await;
    assert!((0.2..=0.65).contains(&due), "1.2 s, halved: {due}");
    over_since(60.0).await;
    assert_eq!(claim().await.0, 3, "the limit has expired");
}
