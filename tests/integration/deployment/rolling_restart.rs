//! Stop of an ingest without a failed webhook: it reports that it is not ready, serves until load
//! balancers notice, answers open requests, and exits with 0.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};
use tests::{
    eventually::eventually,
    slack::{
        socket::{Socket, request},
        webhook::Webhook,
    },
    test_env::{App, Ingest, SMALL, Size, TIMEOUT, TestEnv},
};

/// One ingest without a worker: stored webhooks are not processed.
const INGEST_ONLY: Size = Size { workers: 0, ..SMALL };
const QUICK: Duration = Duration::from_secs(1);

fn hello_message(env: &TestEnv, app: &App) -> Webhook {
    Webhook::message(&env.slack, app, "C1", "U1", "hello")
}

/// Starts two ingests with a drain period of a second.
async fn start_two_ingests() -> (TestEnv, App) {
    let mut env = TestEnv::without_processes(INGEST_ONLY).await.expect("a test environment");
    env.set("TIDEGATE_DRAIN_PERIOD", "1s");
    for _ in 0..2 {
        env.start_ingest().await.expect("an ingest");
    }
    let app = env.connect().await.expect("a connection");
    (env, app)
}

async fn readiness(ingest: &Ingest) -> Option<u16> {
    Some(reqwest::get(ingest.admin("/readyz")).await.ok()?.status().as_u16())
}

async fn assert_clean_exit(ingest: &Ingest) {
    let status = ingest.process.wait(TIMEOUT).await.expect("it ends");
    assert!(status.success(), "{status}\n{}", ingest.process.log());
}

/// Sends webhooks in turn to ready ingests, on kept connections, as a load balancer does. Returns
/// the failures.
async fn send_balanced(
    env: &TestEnv,
    app: &App,
    turn: &AtomicUsize,
    over: &AtomicBool,
) -> Vec<String> {
    let (balancer, mut wrong) = (reqwest::Client::new(), Vec::new());
    while !over.load(Ordering::Relaxed) {
        let first = turn.fetch_add(1, Ordering::Relaxed);
        let mut chosen = None;
        for n in first..first + env.ingests.len() {
            let ingest = &env.ingests[n % env.ingests.len()];
            let ready = balancer.get(ingest.admin("/readyz")).send().await;
            if ready.is_ok_and(|ready| ready.status().is_success()) {
                chosen = Some(ingest);
                break;
            }
        }
        let Some(ingest) = chosen else {
            wrong.push("no ingest is ready".into());
            continue;
        };
        match env.slack.send(&ingest.url(app), &app.secret, &hello_message(env, app)).await {
            Ok(answer) if answer.status == 200 => {}
            Ok(answer) => wrong.push(format!("{answer:?}")),
            Err(error) => wrong.push(format!("{error:#}")),
        }
    }
    wrong
}

/// Clients that send to ready ingests get 200 for every webhook while each ingest is restarted, and
/// each webhook is stored once.
#[tokio::test]
async fn answers_all_during_restart() {
    const CLIENTS: usize = 4;
    let (env, app) = start_two_ingests().await;
    let (turn, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let replace = async {
        for ingest in &env.ingests {
            let stopped_at = Instant::now();
            ingest.process.terminate();
            assert_clean_exit(ingest).await;
            assert!(
                stopped_at.elapsed() >= Duration::from_secs(1),
                "the ingest drained for less than a second"
            );
            ingest.process.restart().expect("it starts again");
            ingest.wait_until_ready().await.expect("it is ready again");
            let sent = turn.load(Ordering::Relaxed);
            eventually("more webhooks are sent", TIMEOUT, async || {
                (turn.load(Ordering::Relaxed) > sent + 50).then_some(())
            })
            .await;
        }
        over.store(true, Ordering::Relaxed);
    };
    let clients = (0..CLIENTS).map(|_| send_balanced(&env, &app, &turn, &over));
    let (wrong, ()) = tokio::join!(futures_util::future::join_all(clients), replace);
    let wrong: Vec<String> = wrong.into_iter().flatten().collect();
    let sent = turn.load(Ordering::Relaxed);
    assert!(wrong.is_empty(), "{} of {sent}: {wrong:#?}", wrong.len());
    assert_eq!(env.stored().await.expect("a count"), sent as u64, "each webhook is stored once");
}

/// An ingest that stops reports that it is not ready, accepts late webhooks, and closes its
/// connections.
#[tokio::test]
async fn drains_before_exit() {
    let (env, app) = start_two_ingests().await;
    let ingest = &env.ingests[0];
    let url = ingest.url(&app);
    let ask = || request(&url, &app.secret, &hello_message(&env, &app)).expect("a request");
    let mut kept = Socket::open(&url).await.expect("a socket");
    kept.send(&ask()).await.expect("a webhook");
    let answer = kept.answer(QUICK).await.expect("an answer");
    assert_eq!((answer.status, answer.headers.get("connection")), (200, None));

    ingest.process.terminate();
    eventually("the ingest is not ready", QUICK / 2, async || {
        (readiness(ingest).await? == 503).then_some(())
    })
    .await;
    assert_eq!(readiness(&env.ingests[1]).await, Some(200));
    let mut fresh = Socket::open(&url).await.expect("a new connection is accepted");
    for socket in [&mut kept, &mut fresh] {
        socket.send(&ask()).await.expect("a webhook");
        let answer = socket.answer(QUICK).await.expect("an answer");
        assert_eq!(answer.status, 200, "the ingest still accepts webhooks");
        assert_eq!(answer.headers.get("connection").map(|v| v.as_bytes()), Some(&b"close"[..]));
        socket.closed(TIMEOUT).await.expect("it closes the connection");
    }
    assert!(ingest.process.is_running(), "the process ended before it closed the connections");
    assert_clean_exit(ingest).await;
}

/// An ingest that stops answers a request whose body is not complete when it closes its port.
#[tokio::test]
async fn answers_open_requests() {
    let (env, app) = start_two_ingests().await;
    let ingest = &env.ingests[0];
    let url = ingest.url(&app);
    let bytes = request(&url, &app.secret, &hello_message(&env, &app)).expect("a request");
    let (most, last) = bytes.split_at(bytes.len() - 1);
    ingest.process.terminate();
    eventually("the ingest is not ready", QUICK / 2, async || {
        (readiness(ingest).await? == 503).then_some(())
    })
    .await;
    let mut begun = Socket::open(&url).await.expect("a socket");
    begun.send(most).await.expect("all but a byte");
    eventually("the port is closed", TIMEOUT, async || {
        Socket::open(&url).await.is_err().then_some(())
    })
    .await;
    begun.send(last).await.expect("the last byte");
    assert_eq!(begun.answer(QUICK).await.expect("an answer").status, 200);
    begun.closed(TIMEOUT).await.expect("it closes the connection");
    assert_clean_exit(ingest).await;
    assert_eq!(env.stored().await.expect("a count"), 1);
}
