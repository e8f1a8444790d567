//! What Slack never sends costs little: it is refused or closed in time, and what Slack does send is taken meanwhile.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tests::{
    slack::{
        malformed,
        slow::{PATIENCE, SLOW},
        socket::{Socket, request},
        webhook::Webhook,
    },
    until::until,
    world::{App, SMALL, SOON, Size, World},
};

/// Nobody here handles what is stored.
const DOOR: Size = Size { workers: 0, ..SMALL };
/// Quick for Slack, on a busy machine.
const QUICK: Duration = Duration::from_secs(1);
const MIB: u64 = 1024 * 1024;

fn hello(world: &World, app: &App) -> Webhook {
    Webhook::message(&world.slack, app, "C1", "U1", "hello")
}

#[tokio::test]
async fn a_silent_or_slow_socket_is_closed_in_time_and_disturbs_nobody() {
    let world = World::start(DOOR).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let url = world.ingests[0].url(&app);
    let (url, webhook) = (url.as_str(), hello(&world, &app));
    let closed = SLOW.map(|slow| {
        let (app, webhook) = (&app, &webhook);
        async move { (slow, slow.closed(url, &app.secret, webhook).await) }
    });
    let ordinary = async {
        let mut slowest = Duration::ZERO;
        let mut pace = tokio::time::interval(Duration::from_millis(250));
        for _ in 0..10 {
            pace.tick().await;
            let answer = world.send(&app, &hello(&world, &app)).await.expect("an answer");
            assert_eq!(answer.status, 200);
            slowest = slowest.max(answer.took);
        }
        slowest
    };
    let (closed, slowest) = tokio::join!(futures_util::future::join_all(closed), ordinary);
    for (slow, closed) in closed {
        let age = closed.unwrap_or_else(|error| panic!("{slow:?}: {error:#}"));
        assert!(age >= PATIENCE, "{slow:?}: closed after {age:?}, which is early");
    }
    assert!(slowest < QUICK, "an ordinary webhook took {slowest:?}");
}

#[tokio::test]
async fn a_body_whose_length_can_be_read_in_two_ways_is_refused_and_nothing_after_it_is_a_request()
{
    let world = World::start(DOOR).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let (url, webhook) = (world.ingests[0].url(&app), hello(&world, &app));
    let hidden = request(&url, &app.secret, &webhook).expect("a request");
    for malformed in malformed::two_lengths(&url, &app.secret, &webhook).expect("requests") {
        let (framing, bytes) = (malformed.what, [malformed.bytes, hidden.clone()].concat());
        let mut socket = Socket::open(&url).await.expect("a socket");
        socket.send(&bytes).await.expect("it is taken");
        let answer = socket.answer(QUICK).await.unwrap_or_else(|e| panic!("{framing:?}: {e:#}"));
        assert_eq!(answer.status, malformed.status, "{framing:?}");
        socket.closed(QUICK * 2).await.unwrap_or_else(|error| panic!("{framing:?}: {error:#}"));
        assert_eq!(socket.unread(), "", "{framing:?}: what came after was answered, too");
    }
    for malformed in malformed::other_bytes(&url, &app.secret, &webhook).expect("requests") {
        let answer = malformed.send(&url, QUICK).await.expect("an answer");
        assert_eq!(answer.status, malformed.status, "{}", malformed.what);
    }
    assert_eq!(world.stored().await.expect("a count"), 0);

    let mut socket = Socket::open(&url).await.expect("a socket");
    socket.send(&hidden).await.expect("it is taken");
    assert_eq!(
        socket.answer(QUICK).await.expect("an answer").status,
        200,
        "and the same webhook, of one length, is taken"
    );
}

#[tokio::test]
async fn the_routes_take_post_and_nothing_else() {
    let world = World::start(DOOR).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let client = reqwest::Client::new();
    for url in [world.ingests[0].url(&app), world.ingests[0].path("/slack/events")] {
        for method in ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let method: reqwest::Method = method.parse().expect("a method");
            let answer = client.request(method.clone(), &url).send().await.expect("an answer");
            assert_eq!(answer.status().as_u16(), 405, "{method} {url}");
        }
    }
    let elsewhere = client.post(world.ingests[0].path("/readyz")).send().await.expect("an answer");
    assert_eq!(elsewhere.status().as_u16(), 404, "health is not for the public");
}

#[tokio::test]
async fn a_body_over_the_limit_is_refused_by_its_length_before_it_is_sent() {
    let world = World::start(DOOR).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let (url, webhook) = (world.ingests[0].url(&app), hello(&world, &app));
    for malformed in malformed::too_large(&url, &app.secret, &webhook).expect("requests") {
        let mut socket = Socket::open(&url).await.expect("a socket");
        socket.send(&malformed.bytes).await.expect("the head is taken");
        let answer = socket.answer(QUICK).await.expect("an answer");
        assert_eq!(answer.status, malformed.status, "{}", malformed.what);
        socket.closed(QUICK * 2).await.expect("the body is not waited for");
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_room_while_health_still_answers() {
    let mut world = World::without_processes(DOOR).await.expect("a world");
    world.set("TIDEGATE_HTTP_MAX_CONNECTIONS", "3");
    world.start_ingest().await.expect("an ingest");
    let app = world.connect().await.expect("a connection");
    let ingest = &world.ingests[0];
    let url = ingest.url(&app);
    let ask = || request(&url, &app.secret, &hello(&world, &app)).expect("a request");

    let mut holders = Vec::new();
    for _ in 0..3 {
        let mut socket = Socket::open(&url).await.expect("a socket");
        socket.send(&ask()).await.expect("a webhook");
        assert_eq!(socket.answer(QUICK).await.expect("an answer").status, 200);
        holders.push(socket);
    }
    let mut next = Socket::open(&url).await.expect("the kernel lets it wait");
    next.send(&ask()).await.expect("a webhook");
    next.answer(QUICK / 2).await.expect_err("a fourth connection is served");
    let healthy = reqwest::get(ingest.admin("/healthz")).await.expect("health answers");
    assert_eq!(healthy.status().as_u16(), 200);

    drop(holders.pop());
    assert_eq!(next.answer(QUICK).await.expect("there is room now").status, 200);
    for mut holder in holders {
        // It was the one that left which made the room: these are still served.
        holder.send(&ask()).await.expect("a webhook");
        assert_eq!(holder.answer(QUICK).await.expect("an answer").status, 200);
    }
}

#[tokio::test]
async fn webhooks_beyond_those_that_can_be_carried_are_sent_away_at_once_and_the_others_are_taken()
{
    let mut world = World::without_processes(DOOR).await.expect("a world");
    world.set("TIDEGATE_HTTP_MAX_IN_FLIGHT", "4");
    world.start_ingest().await.expect("an ingest");
    let app = world.connect().await.expect("a connection");
    let ingest = &world.ingests[0];
    let url = ingest.url(&app);

    let mut held = Vec::new();
    for _ in 0..4 {
        let bytes = request(&url, &app.secret, &hello(&world, &app)).expect("a request");
        let (most, last) = bytes.split_at(bytes.len() - 1);
        let mut socket = Socket::open(&url).await.expect("a socket");
        socket.send(most).await.expect("all but a byte");
        held.push((socket, last.to_vec()));
    }
    until("four are in flight", SOON, async || {
        (ingest.metric("tidegate_ingest_requests_in_flight").await.ok()? == 4.0).then_some(())
    })
    .await;
    let answer = world.send(&app, &hello(&world, &app)).await.expect("an answer");
    assert_eq!(
        (answer.status, &answer.headers["retry-after"]),
        (503, &"1".parse().expect("a value"))
    );
    assert!(answer.took < QUICK / 2, "{:?}", answer.took);
    for (socket, last) in &mut held {
        socket.send(last).await.expect("the last byte");
        assert_eq!(socket.answer(QUICK).await.expect("an answer").status, 200);
    }
    assert_eq!(world.send(&app, &hello(&world, &app)).await.expect("an answer").status, 200);
    assert_eq!(world.stored().await.expect("a count"), 5);
}

#[tokio::test]
async fn made_up_connections_cost_a_bounded_number_of_reads_and_of_bytes_and_real_ones_are_served()
{
    const CLIENTS: usize = 8;
    const IDS_EACH: usize = 1_250;
    const READS_PER_SECOND: u64 = 500;
    let world = World::start(DOOR).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let ingest = &world.ingests[0];
    let webhook = hello(&world, &app);
    assert_eq!(world.send(&app, &webhook).await.expect("an answer").status, 200);
    let (before, began) = (ingest.process.resident().expect("it runs"), Instant::now());

    let spray = async || {
        let mut socket = Socket::open(&ingest.url(&app)).await.expect("a socket");
        let mut statuses = BTreeMap::<u16, u64>::new();
        let mut app = app.clone();
        for _ in 0..IDS_EACH {
            app.connection = shared::types::ConnectionId::random().expect("randomness");
            let bytes = request(&ingest.url(&app), &app.secret, &webhook).expect("a request");
            socket.send(&bytes).await.expect("the connection is kept");
            *statuses.entry(socket.answer(SOON).await.expect("an answer").status).or_default() += 1;
        }
        statuses
    };
    let ordinary = async {
        let mut slowest = Duration::ZERO;
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        for _ in 0..10 {
            pace.tick().await;
            let answer = world.send(&app, &hello(&world, &app)).await.expect("an answer");
            assert_eq!(answer.status, 200, "a real one, meanwhile");
            slowest = slowest.max(answer.took);
        }
        slowest
    };
    let spray = futures_util::future::join_all((0..CLIENTS).map(|_| spray()));
    let (sprayed, slowest) = tokio::join!(spray, ordinary);
    let seconds = began.elapsed().as_secs() + 2;
    let grown = ingest.process.resident().expect("it runs").saturating_sub(before);

    let mut statuses = BTreeMap::new();
    for (status, count) in sprayed.into_iter().flatten() {
        *statuses.entry(status).or_insert(0) += count;
    }
    assert_eq!(
        statuses.keys().collect::<Vec<_>>(),
        [&404],
        "memory knows that there is none: {statuses:?}"
    );
    let reads =
        ingest.metric("tidegate_ingest_directory_cache_misses_total").await.expect("metrics");
    assert!(
        reads >= 1.0 && reads <= (READS_PER_SECOND * seconds) as f64,
        "{reads} reads in {seconds} s"
    );
    assert!(slowest < QUICK, "a real webhook took {slowest:?}");
    assert!(grown < 32 * MIB, "it grew by {} KiB", grown / 1024);
    let newer = world.connect().await.expect("a connection made afterwards");
    assert_eq!(world.send(&newer, &hello(&world, &newer)).await.expect("an answer").status, 200);
}
