//! Requests that Slack never sends: they use few resources and are rejected or closed in time,
//! while Slack's requests are accepted.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tests::{
    eventually::eventually,
    slack::{
        forged::GOOD_FOR,
        malformed, sign,
        slow_clients::{IDLE_MIN, SLOW_CLIENTS},
        socket::{Socket, head, request},
        unix_now,
        webhook::Webhook,
    },
    test_env::{App, SMALL, Size, TIMEOUT, TestEnv},
};

/// One ingest without a worker: stored webhooks are not processed.
const INGEST_ONLY: Size = Size { workers: 0, ..SMALL };
/// Maximum time of an ordinary answer, on a busy machine.
const QUICK: Duration = Duration::from_secs(1);
const MIB: u64 = 1024 * 1024;

fn hello_message(env: &TestEnv, app: &App) -> Webhook {
    Webhook::message(&env.slack, app, "C1", "U1", "hello")
}

/// Silent and slow clients are closed, not too early, while other webhooks are answered within a
/// second.
#[tokio::test]
async fn closes_silent_and_slow_sockets() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let url = env.ingests[0].url(&app);
    let (url, webhook) = (url.as_str(), hello_message(&env, &app));
    let closed = SLOW_CLIENTS.map(|slow| {
        let (app, webhook) = (&app, &webhook);
        async move { (slow, slow.closed(url, &app.secret, webhook).await) }
    });
    let ordinary = async {
        let mut slowest = Duration::ZERO;
        let mut pace = tokio::time::interval(Duration::from_millis(250));
        for _ in 0..10 {
            pace.tick().await;
            let answer = env.send(&app, &hello_message(&env, &app)).await.expect("an answer");
            assert_eq!(answer.status, 200);
            slowest = slowest.max(answer.took);
        }
        slowest
    };
    let (closed, slowest) = tokio::join!(futures_util::future::join_all(closed), ordinary);
    for (slow, closed) in closed {
        let age = closed.unwrap_or_else(|error| panic!("{slow:?}: {error:#}"));
        assert!(age >= IDLE_MIN, "{slow:?}: closed after {age:?}, which is early");
    }
    assert!(slowest < QUICK, "an ordinary webhook took {slowest:?}");
}

/// A request with two body lengths is rejected, and the bytes after it are not parsed as a request.
#[tokio::test]
async fn rejects_ambiguous_body_length() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let (url, webhook) = (env.ingests[0].url(&app), hello_message(&env, &app));
    let hidden = request(&url, &app.secret, &webhook).expect("a request");
    for malformed in malformed::two_lengths(&url, &app.secret, &webhook).expect("requests") {
        let (framing, bytes) = (malformed.what, [malformed.bytes, hidden.clone()].concat());
        let mut socket = Socket::open(&url).await.expect("a socket");
        socket.send(&bytes).await.expect("it is taken");
        let answer = socket.answer(QUICK).await.unwrap_or_else(|e| panic!("{framing:?}: {e:#}"));
        assert_eq!(answer.status, malformed.status, "{framing:?}");
        socket.closed(QUICK * 2).await.unwrap_or_else(|error| panic!("{framing:?}: {error:#}"));
        assert_eq!(socket.unread(), "", "{framing:?}: the bytes after the body were answered");
    }
    for malformed in malformed::other_bytes(&url, &app.secret, &webhook).expect("requests") {
        let answer = malformed.send(&url, QUICK).await.expect("an answer");
        assert_eq!(answer.status, malformed.status, "{}", malformed.what);
    }
    assert_eq!(env.stored().await.expect("a count"), 0);

    let mut socket = Socket::open(&url).await.expect("a socket");
    socket.send(&hidden).await.expect("it is taken");
    assert_eq!(
        socket.answer(QUICK).await.expect("an answer").status,
        200,
        "the same webhook with one length is accepted"
    );
}

/// Webhook routes answer 405 to other methods, and the public port has no health route.
#[tokio::test]
async fn accepts_only_post() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let client = reqwest::Client::new();
    for url in [env.ingests[0].url(&app), env.ingests[0].path("/slack/events")] {
        for method in ["GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS"] {
            let method: reqwest::Method = method.parse().expect("a method");
            let answer = client.request(method.clone(), &url).send().await.expect("an answer");
            assert_eq!(answer.status().as_u16(), 405, "{method} {url}");
        }
    }
    let elsewhere = client.post(env.ingests[0].path("/readyz")).send().await.expect("an answer");
    assert_eq!(elsewhere.status().as_u16(), 404, "the public port serves health");
}

/// A body over the limit is rejected by its declared length, before it is received.
#[tokio::test]
async fn rejects_large_body_by_length() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let (url, webhook) = (env.ingests[0].url(&app), hello_message(&env, &app));
    for malformed in malformed::too_large(&url, &app.secret, &webhook).expect("requests") {
        let mut socket = Socket::open(&url).await.expect("a socket");
        socket.send(&malformed.bytes).await.expect("the head is taken");
        let answer = socket.answer(QUICK).await.expect("an answer");
        assert_eq!(answer.status, malformed.status, "{}", malformed.what);
        socket.closed(QUICK * 2).await.expect("the body is not waited for");
    }
}

/// An HTTP connection over the limit waits for a place, and health checks are answered meanwhile.
#[tokio::test]
async fn queues_connections_over_limit() {
    let mut env = TestEnv::without_processes(INGEST_ONLY).await.expect("a test environment");
    env.set("TIDEGATE_HTTP_MAX_CONNECTIONS", "3");
    env.start_ingest().await.expect("an ingest");
    let app = env.connect().await.expect("a connection");
    let ingest = &env.ingests[0];
    let url = ingest.url(&app);
    let ask = || request(&url, &app.secret, &hello_message(&env, &app)).expect("a request");

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
        // Only the client that left is closed: these are still served.
        holder.send(&ask()).await.expect("a webhook");
        assert_eq!(holder.answer(QUICK).await.expect("an answer").status, 200);
    }
}

/// A webhook over the limit of requests in flight gets a 503 at once, and those within the limit
/// are accepted.
#[tokio::test]
async fn rejects_webhooks_over_limit() {
    let mut env = TestEnv::without_processes(INGEST_ONLY).await.expect("a test environment");
    env.set("TIDEGATE_HTTP_MAX_IN_FLIGHT", "4");
    env.start_ingest().await.expect("an ingest");
    let app = env.connect().await.expect("a connection");
    let ingest = &env.ingests[0];
    let url = ingest.url(&app);

    // A request whose body is incomplete, and so not verified, is not in flight.
    let bytes = request(&url, &app.secret, &hello_message(&env, &app)).expect("a request");
    let mut incomplete = Vec::new();
    for _ in 0..8 {
        let mut socket = Socket::open(&url).await.expect("a socket");
        socket.send(&bytes[..bytes.len() - 1]).await.expect("all but a byte");
        incomplete.push(socket);
    }
    assert_eq!(env.send(&app, &hello_message(&env, &app)).await.expect("an answer").status, 200);

    env.nats.freeze();
    let mut held = Vec::new();
    for _ in 0..4 {
        let bytes = request(&url, &app.secret, &hello_message(&env, &app)).expect("a request");
        let mut socket = Socket::open(&url).await.expect("a socket");
        socket.send(&bytes).await.expect("a webhook");
        held.push(socket);
    }
    eventually("four are in flight", TIMEOUT, async || {
        (ingest.metric("tidegate_ingest_requests_in_flight").await.ok()? == 4.0).then_some(())
    })
    .await;
    let answer = env.send(&app, &hello_message(&env, &app)).await.expect("an answer");
    assert_eq!(
        (answer.status, &answer.headers["retry-after"]),
        (503, &"1".parse().expect("a value"))
    );
    assert!(answer.took < QUICK / 2, "{:?}", answer.took);
    env.nats.thaw();
    for socket in &mut held {
        assert_eq!(socket.answer(QUICK).await.expect("an answer").status, 200);
    }
    assert_eq!(env.send(&app, &hello_message(&env, &app)).await.expect("an answer").status, 200);
    assert_eq!(env.stored().await.expect("a count"), 6);
}

/// Heads over 64 headers or 32 KiB get 431. Slack's own heads are a fiftieth of that.
#[tokio::test]
async fn rejects_large_heads() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let (url, webhook) = (env.ingests[0].url(&app), hello_message(&env, &app));
    let length = format!("content-length: {}", webhook.body.len());
    let many = |count: usize| {
        let more = (0..count).map(|n| format!("x-more-{n}: 1"));
        more.chain([length.clone()]).collect::<Vec<_>>()
    };
    let long = |bytes: usize| vec![format!("x-long: {}", "x".repeat(bytes)), length.clone()];
    // The other headers are host, media type, the two of the signature, and the length.
    for (lines, status) in [
        (many(64 - 5), 200),
        (many(64 - 4), 431),
        (long(30 * 1024), 200),
        (long(33 * 1024), 431),
        (long(1024 * 1024), 431),
    ] {
        let what = format!("{} headers, {} bytes", lines.len() + 4, lines.concat().len());
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        let head = head(&url, &app.secret, &webhook, &lines).expect("a head");
        let mut socket = Socket::open(&url).await.expect("a socket");
        // The ingest may close before all of it is sent.
        let _ = socket.send(&[&head[..], &webhook.body].concat()).await;
        match socket.answer(QUICK).await {
            Ok(answer) => assert_eq!(answer.status, status, "{what}"),
            Err(error) => assert!(status == 431 && head.len() > 64 * 1024, "{what}: {error:#}"),
        }
    }
}

/// A malformed or stale signature gets 401 before the body is received.
#[tokio::test]
async fn rejects_bad_signature_by_head() {
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let now = unix_now();
    let good = sign(&app.secret, &now.to_string(), b"");
    let upper = good.to_uppercase();
    let good = good.as_str();
    for (signature, second) in [
        ("", now.to_string()),
        (&good[..60], now.to_string()),
        (upper.as_str(), now.to_string()),
        (good, String::new()),
        (good, format!("+{now}")),
        (good, (now - GOOD_FOR - 1).to_string()),
        (good, (now + GOOD_FOR + 10).to_string()),
    ] {
        for url in [env.ingests[0].url(&app), env.ingests[0].path("/slack/events")] {
            let (authority, path) =
                url.strip_prefix("http://").and_then(|rest| rest.split_once('/')).expect("a URL");
            let head = format!(
                "POST /{path} HTTP/1.1\r\nhost: {authority}\r\ncontent-type: application/json\r\n\
                 content-length: 100000\r\nx-slack-signature: {signature}\r\n\
                 x-slack-request-timestamp: {second}\r\n\r\n"
            );
            let mut socket = Socket::open(&url).await.expect("a socket");
            socket.send(head.as_bytes()).await.expect("the head is taken");
            let answer = socket.answer(QUICK).await.expect("an answer, without the body");
            assert_eq!((answer.status, answer.body.as_str()), (401, ""), "{signature} {second}");
        }
    }
    // Slack's check of the certificate is not signed. Only small bodies are searched for it.
    for (body, status) in [("ssl_check=1&token=a".to_owned(), 200), ("x".repeat(2000), 401)] {
        let body = if status == 200 { body } else { format!("ssl_check=1&token={body}") };
        let sent = reqwest::Client::new()
            .post(env.ingests[0].url(&app))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(body);
        let answer = sent.send().await.expect("an answer");
        assert_eq!(answer.status().as_u16(), status);
    }
}

/// Unknown connection ids cause a bounded number of directory reads and bytes; existing connections
/// are served.
#[tokio::test]
async fn bounds_cost_of_unknown_ids() {
    const CLIENTS: usize = 8;
    const IDS_EACH: usize = 1_250;
    const READS_PER_SECOND: u64 = 500;
    let env = TestEnv::start(INGEST_ONLY).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    let ingest = &env.ingests[0];
    let webhook = hello_message(&env, &app);
    assert_eq!(env.send(&app, &webhook).await.expect("an answer").status, 200);
    let (before, began) = (ingest.process.resident().expect("it runs"), Instant::now());

    let spray = async || {
        let mut socket = Socket::open(&ingest.url(&app)).await.expect("a socket");
        let mut statuses = BTreeMap::<u16, u64>::new();
        let mut app = app.clone();
        for _ in 0..IDS_EACH {
            app.connection = shared::domain::ConnectionId::random().expect("randomness");
            let bytes = request(&ingest.url(&app), &app.secret, &webhook).expect("a request");
            socket.send(&bytes).await.expect("the connection is kept");
            *statuses
                .entry(socket.answer(TIMEOUT).await.expect("an answer").status)
                .or_default() += 1;
        }
        statuses
    };
    let ordinary = async {
        let mut slowest = Duration::ZERO;
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        for _ in 0..10 {
            pace.tick().await;
            let answer = env.send(&app, &hello_message(&env, &app)).await.expect("an answer");
            assert_eq!(answer.status, 200, "an ordinary webhook, meanwhile");
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
        "unknown ids are answered with 404: {statuses:?}"
    );
    let reads =
        ingest.metric("tidegate_ingest_directory_cache_misses_total").await.expect("metrics");
    assert!(
        reads >= 1.0 && reads <= (READS_PER_SECOND * seconds) as f64,
        "{reads} reads in {seconds} s"
    );
    assert!(slowest < QUICK, "an ordinary webhook took {slowest:?}");
    assert!(grown < 32 * MIB, "ingest grew by {} KiB", grown / 1024);
    let newer = env.connect().await.expect("a connection made afterwards");
    assert_eq!(
        env.send(&newer, &hello_message(&env, &newer)).await.expect("an answer").status,
        200
    );
}
