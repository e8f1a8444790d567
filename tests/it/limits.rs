//! Slack's limits are heard by all workers, and cost nobody else anything.

use futures_util::future::join_all;
use shared::{partition::Partition, store::NewConnection, types::Status};
use std::time::Duration;
use tests::{
    slack::{api::Outcome, limits::Limit, webhook::Webhook},
    until::until,
    world::{App, SMALL, SOON, Size, World, agent_id},
};

const FOUR: Size = Size { ingests: 1, workers: 4, own_postgres: false };
const POST: &str = "chat.postMessage";

fn answered(new: &mut NewConnection) {
    new.agent = Some(agent_id());
}

async fn say(world: &World, app: &App, channel: &str, text: &str) {
    let webhook = Webhook::message(&world.slack, app, channel, "U1", text);
    assert_eq!(world.send(app, &webhook).await.expect("an answer").status, 200);
}

fn posted(world: &World, app: &App) -> usize {
    let by_bot =
        |call: &tests::slack::api::Call| call.team == app.team && call.outcome == Outcome::Taken;
    world.slack.calls_of(POST).iter().filter(|call| by_bot(call)).count()
}

#[tokio::test]
async fn a_burst_over_four_workers_runs_into_a_limit_once() {
    let world = World::start(FOUR).await.expect("a world");
    let app = world.connect_as(answered).await.expect("a connection");
    let other = world.connect_as(answered).await.expect("a connection");
    world.slack.limit(vec![Limit::method(POST, 20, Duration::from_secs(4))]);
    let channels: Vec<String> = (0..26).map(|n| format!("C{n:04}")).collect();
    join_all(channels.iter().map(|channel| say(&world, &app, channel, "hello"))).await;
    let limited = || -> Vec<tests::slack::api::Call> {
        let mut calls = world.slack.calls_of(POST);
        calls.retain(|call| matches!(call.outcome, Outcome::RateLimited(_)));
        calls
    };
    let first = until("Slack has had enough", SOON, async || limited().into_iter().next()).await;

    // Another workspace is none of its business.
    say(&world, &other, "C1", "hello").await;
    until("the other is answered", Duration::from_secs(3), async || {
        (posted(&world, &other) == 1).then_some(())
    })
    .await;

    until("all is said", Duration::from_secs(60), async || {
        (posted(&world, &app) == 26).then_some(())
    })
    .await;
    // One call per worker may have been under way when the first was answered.
    let limited = limited();
    assert!(limited.len() <= FOUR.workers, "{} calls were refused", limited.len());
    for call in &limited {
        assert!(first.before(call) < Duration::from_millis(250), "{:?}", first.before(call));
    }
}

#[tokio::test]
async fn a_channel_is_told_one_message_a_second() {
    let mut world = World::without_processes(SMALL).await.expect("servers");
    world.set("TIDEGATE_CHANNEL_PACE", "1s");
    world.start_ingest().await.expect("an ingest");
    world.start_worker().await.expect("a worker");
    world.settled().await.expect("settled");
    let app = world.connect_as(answered).await.expect("a connection");
    world.slack.limit(vec![Limit::channel(POST, 1, Duration::from_millis(900))]);
    for text in ["one", "two", "three", "four"] {
        say(&world, &app, "D1", text).await;
    }
    until("all are said", SOON, async || (posted(&world, &app) == 4).then_some(())).await;
    let calls = world.slack.calls_of(POST);
    assert_eq!(calls.len(), 4, "no call was refused");
    let texts: Vec<&str> = calls.iter().filter_map(|call| call.args["text"].as_str()).collect();
    assert_eq!(texts, ["one", "two", "three", "four"].map(|text| format!("I heard: {text}")));
}

/// Between two calls lies a second and more at first, and nothing after a while.
#[tokio::test]
async fn after_a_limit_one_is_sent_at_a_time_and_soon_all_again() {
    let servers = Size { ingests: 0, workers: 0, own_postgres: false };
    let world = World::without_processes(servers).await.expect("servers");
    let connection = world.prepare(Status::Active).await.expect("a connection").connection;
    world.store.register_worker("w1", "one", Duration::from_secs(600)).await.expect("registered");
    // Nobody sends them, so nobody has to be able to open them.
    for sql in [
        "insert into outbox_lanes (connection_id, lane, partition, head, tail, channel_key, turn, next_at)
         select $1, n, 0, 1, 1, 'C' || n, n, now() from generate_series(1, 4) n",
        "insert into outbox_channels (connection_id, channel_key, partition, pending, next_at)
         select $1, 'C' || n, 0, 1, now() from generate_series(1, 4) n",
        "insert into outbox (connection_id, lane, position, partition, channel_key, method, dedup_key, request)
         select $1, n, 1, 0, 'C' || n, 'chat.postMessage', 'key ' || n, 'sealed' from generate_series(1, 4) n",
    ] {
        sqlx::query(sql).bind(connection.to_string()).execute(&world.pool).await.expect("rows");
    }
    let partitions = [Partition::try_from(0).expect("there are 64")];
    let claim = async || {
        let claimed =
            world.store.claim_outbox_messages("w1", &partitions, None, 10, SOON, Duration::ZERO);
        let claimed = claimed.await.expect("an answer");
        let next_due = claimed.next_due.map(|due| due.as_secs_f64());
        (claimed.messages.len() + claimed.unreadable.len(), next_due)
    };
    let over_since = async |seconds: f64| {
        for sql in [
            "update slack_rate_limits set next_at = '-infinity', blocked_until = now() - make_interval(secs => $1)",
            "update outbox_channels set next_at = now() where next_at < 'infinity' and $1 > 0",
        ] {
            sqlx::query(sql).bind(seconds).execute(&world.pool).await.expect("moved");
        }
    };
    let thirty = Duration::from_secs(30);
    world.store.limit_slack(connection, POST, thirty).await.expect("written down");
    let (none, due) = claim().await;
    assert!(none == 0 && due.is_some_and(|due| (25.0..=30.0).contains(&due)), "{due:?}");

    over_since(10.0).await;
    assert_eq!(claim().await.0, 1);
    let due = until("the others are visited again", SOON, async || {
        let (rows, due) = claim().await;
        assert_eq!(rows, 0);
        due.filter(|due| *due > 0.1)
    })
    .await;
    assert!((0.2..=0.65).contains(&due), "1.2 s, halved: {due}");
    over_since(60.0).await;
    assert_eq!(claim().await.0, 3, "it is forgotten");
}
