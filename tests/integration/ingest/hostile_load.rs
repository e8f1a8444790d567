//! Load of strangers: webhooks of Slack are accepted meanwhile, and memory stays within the
//! settings.
//!
//! With `TIDEGATE_FULL_SIZE` there are 2,000 slow bodies and 1,000 clients that never read.

use std::time::Duration;
use tests::{
    size::ci_or_full,
    slack::{
        socket::{Socket, head},
        webhook::Webhook,
    },
    test_env::{App, SMALL, Size, TestEnv},
};

/// One ingest without a worker: stored webhooks are not processed.
const INGEST_ONLY: Size = Size { workers: 0, ..SMALL };
const SLACK_DEADLINE: Duration = Duration::from_secs(3);
/// Secret of no connection.
const MADE_UP: &str = "made up";
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

fn hello_message(env: &TestEnv, app: &App) -> Webhook {
    Webhook::message(&env.slack, app, "C1", "U1", "hello")
}

/// Sends webhooks of an app for `period`. Checks that each is accepted in time.
async fn send_ordinary(env: &TestEnv, app: &App, period: Duration) {
    let mut pace = tokio::time::interval(Duration::from_millis(100));
    for _ in 0..period.as_millis() / 100 {
        pace.tick().await;
        let answer = env.send(app, &hello_message(env, app)).await.expect("an answer");
        assert_eq!(answer.status, 200, "an ordinary webhook, meanwhile: {answer:?}");
        assert!(answer.took < SLACK_DEADLINE, "an ordinary webhook took {:?}", answer.took);
    }
}

/// Sends the head of a webhook with an invalid signature, and a part of its body.
async fn begin_body(url: &str, webhook: &Webhook, length: usize, part: usize) -> Socket {
    let mut socket = Socket::open(url).await.expect("a socket");
    let length = format!("content-length: {length}");
    let head = head(url, MADE_UP, webhook, &[&length]).expect("a head");
    socket.send(&head).await.expect("the head is taken");
    let _ = socket.send(&vec![b'x'; part]).await; // it is rejected and closed over the budget
    socket
}

/// Slow and large bodies of strangers displace no webhook of Slack and take a bounded memory.
#[tokio::test]
async fn accepts_beside_slow_bodies() {
    let slow = ci_or_full(300, 2_000);
    let mut env = TestEnv::without_processes(INGEST_ONLY).await.expect("a test environment");
    env.set("TIDEGATE_HTTP_MAX_IN_FLIGHT", "100");
    env.set("TIDEGATE_HTTP_MAX_UNVERIFIED_BYTES", "16MiB");
    env.start_ingest().await.expect("an ingest");
    let app = env.connect().await.expect("a connection");
    let (url, webhook) = (env.ingests[0].url(&app), hello_message(&env, &app));
    let before = env.ingests[0].process.resident().expect("it runs");
    // Requests are renewed before they time out: small ones, and large ones with half of their
    // body.
    let strangers = async {
        for _ in 0..2 {
            let mut open = Vec::new();
            for n in 0..slow {
                let (length, part) = if n % 2 == 0 { (9, 1) } else { (1 << 20, 512 << 10) };
                open.push(begin_body(&url, &webhook, length, part).await);
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
    };
    tokio::join!(strangers, send_ordinary(&env, &app, Duration::from_secs(5)));
    let grown = env.ingests[0].process.peak_resident().expect("it runs") - before;
    let most = 16 * MIB + slow as u64 * 32 * KIB + 32 * MIB;
    assert!(grown < most, "ingest grew by {} KiB, allowed are {}", grown / KIB, most / KIB);
}

/// A body in pieces of a byte takes the memory of its bytes, not a buffer for each.
#[tokio::test]
async fn bounds_memory_of_pieces() {
    const CLIENTS: usize = 20;
    const PIECES: usize = 400;
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let (url, webhook) = (env.ingests[0].url(&app), hello_message(&env, &app));
    let before = env.ingests[0].process.resident().expect("it runs");
    let drip = async || {
        let mut socket = begin_body(&url, &webhook, 2 * PIECES, 1).await;
        let mut pace = tokio::time::interval(Duration::from_millis(5));
        for _ in 0..PIECES {
            pace.tick().await;
            socket.send(b"x").await.expect("a byte is taken");
        }
    };
    futures_util::future::join_all((0..CLIENTS).map(|_| drip())).await;
    let grown = env.ingests[0].process.peak_resident().expect("it runs") - before;
    // With the read buffer of 8 KiB for each byte: 62 MiB.
    assert!(grown < 24 * MIB, "ingest grew by {} KiB", grown / KIB);
}

/// Clients send requests and read no response. Each is closed, and memory stays bounded.
#[tokio::test]
async fn closes_clients_that_never_read() {
    /// Maximum time until a client is closed: five seconds without progress, and the time to fill
    /// all buffers on a busy machine.
    const CLOSED_WITHIN: Duration = Duration::from_secs(40);
    let clients = ci_or_full(20, 1_000);
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let url = env.ingests[0].url(&app);
    let requests = "GET /nothing HTTP/1.1\r\nhost: a\r\n\r\n".repeat(100);
    let before = env.ingests[0].process.resident().expect("it runs");
    let flood = async || {
        let socket = Socket::open_narrow(&url).await.expect("a socket");
        socket.flood(requests.as_bytes(), CLOSED_WITHIN).await
    };
    let floods = futures_util::future::join_all((0..clients).map(|_| flood()));
    let (closed, ()) = tokio::join!(floods, send_ordinary(&env, &app, Duration::from_secs(5)));
    let ages: Vec<Duration> =
        closed.into_iter().map(|closed| closed.unwrap_or_else(|e| panic!("{e:#}"))).collect();
    // Some are closed earlier, because the rest of a head does not arrive in time.
    assert!(ages.iter().any(|age| *age >= Duration::from_secs(5)), "{ages:?}");
    let grown = env.ingests[0].process.peak_resident().expect("it runs") - before;
    let most = clients as u64 * 136 * KIB + 16 * MIB;
    assert!(grown < most, "ingest grew by {} KiB, allowed are {}", grown / KIB, most / KIB);
}
