//! An ingest that is told to stop leaves without anybody noticing: it says that it is not ready, goes on serving while
//! the load balancer finds out, answers what has begun, and ends well.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};
use tests::{
    slack::{
        socket::{Socket, request},
        webhook::Webhook,
    },
    until::until,
    world::{App, Ingest, SMALL, SOON, Size, World},
};

/// Nobody here handles what is stored.
const DOOR: Size = Size { workers: 0, ..SMALL };
const QUICK: Duration = Duration::from_secs(1);

fn hello(world: &World, app: &App) -> Webhook {
    Webhook::message(&world.slack, app, "C1", "U1", "hello")
}

/// Two ingests, which take leave for a second.
async fn two() -> (World, App) {
    let mut world = World::without_processes(DOOR).await.expect("a world");
    world.set("TIDEGATE_DRAIN_DELAY", "1s");
    for _ in 0..2 {
        world.start_ingest().await.expect("an ingest");
    }
    let app = world.connect().await.expect("a connection");
    (world, app)
}

async fn readiness(ingest: &Ingest) -> Option<u16> {
    Some(reqwest::get(ingest.admin("/readyz")).await.ok()?.status().as_u16())
}

async fn ends_well(ingest: &Ingest) {
    let status = ingest.process.wait(SOON).await.expect("it ends");
    assert!(status.success(), "{status}\n{}", ingest.process.log());
}

/// A load balancer's client: asks who is ready, sends there, in turn, on connections that it keeps.
async fn balance(world: &World, app: &App, turn: &AtomicUsize, over: &AtomicBool) -> Vec<String> {
    let (balancer, mut wrong) = (reqwest::Client::new(), Vec::new());
    while !over.load(Ordering::Relaxed) {
        let first = turn.fetch_add(1, Ordering::Relaxed);
        let mut chosen = None;
        for n in first..first + world.ingests.len() {
            let ingest = &world.ingests[n % world.ingests.len()];
            let ready = balancer.get(ingest.admin("/readyz")).send().await;
            if ready.is_ok_and(|ready| ready.status().is_success()) {
                chosen = Some(ingest);
                break;
            }
        }
        let Some(ingest) = chosen else {
            wrong.push("nobody is ready".into());
            continue;
        };
        match world.slack.send(&ingest.url(app), &app.secret, &hello(world, app)).await {
            Ok(answer) if answer.status == 200 => {}
            Ok(answer) => wrong.push(format!("{answer:?}")),
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    wrong
}

#[tokio::test]
async fn both_ingests_are_replaced_one_after_the_other_and_no_webhook_fails() {
    const CLIENTS: usize = 4;
    let (world, app) = two().await;
    let (turn, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let replace = async {
        for ingest in &world.ingests {
            let told = Instant::now();
            ingest.process.terminate();
            ends_well(ingest).await;
            assert!(told.elapsed() >= Duration::from_secs(1), "nobody had time to find out");
            ingest.process.restart().expect("it starts again");
            ingest.ready().await.expect("it is ready again");
            let sent = turn.load(Ordering::Relaxed);
            until("some more were sent", SOON, async || {
                (turn.load(Ordering::Relaxed) > sent + 50).then_some(())
            })
            .await;
        }
        over.store(true, Ordering::Relaxed);
    };
    let clients = (0..CLIENTS).map(|_| balance(&world, &app, &turn, &over));
    let (wrong, ()) = tokio::join!(futures_util::future::join_all(clients), replace);
    let wrong: Vec<String> = wrong.into_iter().flatten().collect();
    let sent = turn.load(Ordering::Relaxed);
    assert!(wrong.is_empty(), "{} of {sent}: {wrong:#?}", wrong.len());
    assert_eq!(world.stored().await.expect("a count"), sent as u64, "each of them, once");
}

#[tokio::test]
async fn an_ingest_that_leaves_says_so_takes_what_still_comes_and_keeps_no_connection() {
    let (world, app) = two().await;
    let ingest = &world.ingests[0];
    let url = ingest.url(&app);
    let ask = || request(&url, &app.secret, &hello(&world, &app)).expect("a request");
    let mut kept = Socket::open(&url).await.expect("a socket");
    kept.send(&ask()).await.expect("a webhook");
    let answer = kept.answer(QUICK).await.expect("an answer");
    assert_eq!((answer.status, answer.headers.get("connection")), (200, None));

    ingest.process.terminate();
    until("it says that it is not ready", QUICK / 2, async || {
        (readiness(ingest).await? == 503).then_some(())
    })
    .await;
    assert_eq!(readiness(&world.ingests[1]).await, Some(200));
    let mut fresh = Socket::open(&url).await.expect("it still lets in who has not heard");
    for socket in [&mut kept, &mut fresh] {
        socket.send(&ask()).await.expect("a webhook");
        let answer = socket.answer(QUICK).await.expect("an answer");
        assert_eq!(answer.status, 200, "it still takes webhooks");
        assert_eq!(answer.headers.get("connection").map(|v| v.as_bytes()), Some(&b"close"[..]));
        socket.closed(SOON).await.expect("it closes the connection");
    }
    assert!(ingest.process.is_running(), "it closed them because it ended");
    ends_well(ingest).await;
}

#[tokio::test]
async fn what_has_begun_when_an_ingest_closes_its_door_is_still_answered() {
    let (world, app) = two().await;
    let ingest = &world.ingests[0];
    let url = ingest.url(&app);
    let bytes = request(&url, &app.secret, &hello(&world, &app)).expect("a request");
    let (most, last) = bytes.split_at(bytes.len() - 1);
    ingest.process.terminate();
    until("it was told", QUICK / 2, async || (readiness(ingest).await? == 503).then_some(())).await;
    let mut begun = Socket::open(&url).await.expect("a socket");
    begun.send(most).await.expect("all but a byte");
    until("the door is closed", SOON, async || Socket::open(&url).await.is_err().then_some(()))
        .await;
    begun.send(last).await.expect("the last byte");
    assert_eq!(begun.answer(QUICK).await.expect("an answer").status, 200);
    begun.closed(SOON).await.expect("it closes the connection");
    ends_well(ingest).await;
    assert_eq!(world.stored().await.expect("a count"), 1);
}
