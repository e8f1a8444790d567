//! Health, metrics and logs for operators, without private data.

use futures_util::future::join_all;
use std::{
    fs::OpenOptions,
    iter,
    process::Command,
    time::{Duration, Instant},
};
use tests::{
    binaries::Binaries,
    eventually::eventually,
    fixtures, port,
    slack::webhook::Webhook,
    test_env::{SMALL, Size, TIMEOUT, TestEnv, agent_id},
};

/// A worker is live and ready, and exports its metrics without ids as labels.
#[tokio::test]
async fn serves_health_of_worker() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    env.send(&app, &webhook).await.expect("an answer");
    env.wait_for_outcome(&webhook.dedup_key).await;
    let worker = &env.workers[0];
    for path in ["/healthz", "/readyz"] {
        let answer = reqwest::get(worker.admin(path)).await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 200, "{path}");
    }
    eventually("the commit is counted", TIMEOUT, async || {
        (worker.metric("tidegate_worker_end_to_end_latency_seconds_count").await.ok()? == 1.0)
            .then_some(())
    })
    .await;
    for (line, figure) in [
        ("tidegate_worker_webhooks_total{kind=\"event\",outcome=\"delivery\"}", 1.0),
        ("tidegate_worker_attempt_duration_seconds_count", 1.0),
        ("tidegate_worker_commit_duration_seconds_count", 1.0),
        ("tidegate_worker_partitions_owned", 64.0),
        ("tidegate_partition_lease_transitions_total{transition=\"claimed\"}", 64.0),
        ("tidegate_connection_cache_requests_total{result=\"miss\"}", 1.0),
    ] {
        assert_eq!(worker.metric(line).await.expect("a figure"), figure, "{line}");
    }
    let page = reqwest::get(worker.admin("/metrics")).await.expect("an answer");
    let page = page.text().await.expect("a page");
    let lags = page.lines().filter(|line| line.starts_with("tidegate_partition_lag{"));
    assert!(lags.clone().count() == 64 && lags.clone().all(|line| line.ends_with("} 0")), "{page}");
    assert!(!page.contains(&app.connection.to_string()), "an id is a label");
}

/// Health and metrics of an ingest are on its admin port only, without ids as labels.
#[tokio::test]
async fn serves_health_on_separate_port() {
    let env = TestEnv::start(SMALL).await.expect("a test environment");
    let app = env.connect_for_fixtures().await.expect("a connection");
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    for _ in 0..2 {
        env.send(&app, &webhook).await.expect("an answer");
    }
    let withheld = &fixtures::named("app_rate_limited").webhook;
    assert_eq!(env.send(&app, withheld).await.expect("an answer").status, 200);
    let ingest = &env.ingests[0];
    let status = async |url: String| reqwest::get(url).await.expect("an answer").status().as_u16();
    assert_eq!(status(ingest.admin("/healthz")).await, 200);
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(status(ingest.path(path)).await, 404, "{path} is on the public port");
    }
    let page = ingest.metrics().await.expect("metrics");
    for line in [
        "tidegate_ingest_webhooks_total{outcome=\"accepted\",kind=\"event\"} 2",
        "tidegate_ingest_webhooks_total{outcome=\"duplicate\",kind=\"event\"} 1",
        "tidegate_http_server_request_duration_seconds_count{http_route=\"/api/v1/webhooks/{connection}\",status_class=\"2xx\"} 3",
        "tidegate_ingest_publish_duration_seconds_count 3",
        "tidegate_ingest_events_withheld_total 1",
        "tidegate_ingest_connections 1",
        "tidegate_ingest_nats_connected 1",
        "tidegate_ingest_requests_in_flight 0",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is missing in:\n{page}");
    }
    assert!(
        !page.contains(&app.connection.to_string()) && !page.contains(&app.team),
        "an id is a label"
    );
}

/// `ingest healthcheck` reports the readiness of the running process by its exit code, as in the
/// image.
#[tokio::test]
async fn checks_readiness_by_program() {
    let size = Size { ingests: 0, workers: 0, own_postgres: false };
    let mut env = TestEnv::without_processes(size).await.expect("servers");
    env.set("TIDEGATE_DRAIN_PERIOD", "60s");
    env.start_ingest().await.expect("an ingest");
    let ask = |admin: &str| {
        let program = &Binaries::get().expect("binaries").ingest;
        let mut command = Command::new(program);
        command.arg("healthcheck").env_clear().env("TIDEGATE_ADMIN_LISTEN", admin);
        let ran = command.output().expect("it runs");
        (ran.status.code(), String::from_utf8(ran.stderr).expect("text"))
    };
    let url = env.ingests[0].admin("");
    let admin = url.strip_prefix("http://").expect("an address");
    assert_eq!(ask(admin), (Some(0), String::new()));
    // As in the image: a server on all addresses is checked at the loopback address.
    let everywhere = admin.replace("127.0.0.1", "0.0.0.0");
    assert_eq!(ask(&everywhere), (Some(0), String::new()));

    // Without NATS ingest still answers Slack, which a balancer without ingests can't.
    env.nats.kill();
    let metric = async || env.ingests[0].metric("tidegate_ingest_nats_connected").await.ok();
    eventually("ingest detects the outage of NATS", TIMEOUT, async || {
        (metric().await == Some(0.0)).then_some(())
    })
    .await;
    assert_eq!(ask(admin), (Some(0), String::new()));

    env.ingests[0].process.terminate();
    eventually("the ingest is not ready", TIMEOUT, async || {
        let (code, stderr) = ask(admin);
        (code == Some(1) && stderr.contains("not ready") && stderr.contains("503")).then_some(())
    })
    .await;
    let nobody = format!("127.0.0.1:{}", port::free().expect("a port"));
    let (code, stderr) = ask(&nobody);
    assert!(code == Some(1) && stderr.contains("no response"), "{code:?} {stderr}");
}

/// A webhook has one log line, and no line has its text, secrets or signature, also at level trace.
#[tokio::test]
async fn logs_webhook_without_content() {
    let mut env = TestEnv::start(SMALL).await.expect("a test environment");
    env.set("TIDEGATE_LOG_FILTER", "ingest=trace,shared=trace,info");
    env.set("TIDEGATE_LOG_FORMAT", "json");
    env.start_ingest().await.expect("an ingest at level trace");
    let app = env.connect().await.expect("a connection");
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "the words of a user");
    let url = env.ingests[1].url(&app);
    assert_eq!(env.slack.send(&url, &app.secret, &webhook).await.expect("an answer").status, 200);
    assert_eq!(env.slack.send(&url, "wrong", &webhook).await.expect("an answer").status, 401);
    let (log, webhooks) = eventually("both are in the log", TIMEOUT, async || {
        let log = env.ingests[1].process.log();
        let lines = log.lines().filter_map(|line| serde_json::from_str(line).ok());
        let webhooks: Vec<serde_json::Value> = lines
            .filter(|line: &serde_json::Value| line["message"] == "webhook answered")
            .collect();
        (webhooks.len() >= 2).then_some((log, webhooks))
    })
    .await;
    let outcomes: Vec<_> =
        webhooks.iter().map(|line| line["outcome"].as_str().unwrap_or_default()).collect();
    assert_eq!(outcomes, ["accepted", "bad_signature"], "{log}");
    assert_eq!(webhooks[0]["connection_id"], app.connection.to_string());
    assert!(webhooks[0]["sequence"].is_u64() && webhooks[0]["dur_ms"].is_number());
    for secret in ["the words of a user", &app.secret, &app.token, "legacy-token", "v0="] {
        assert!(!log.contains(secret), "{secret} is in the log");
    }
}

/// A full log pipe delays no webhook: lines are dropped and counted, and the process still stops.
#[tokio::test]
async fn survives_unread_log() {
    let mut env = TestEnv::start(Size { workers: 0, ..SMALL }).await.expect("a test environment");
    let app = env.connect().await.expect("a connection");
    // Many lines per webhook, into a pipe that is open and never read.
    env.set("TIDEGATE_LOG_FILTER", "trace");
    let log = env.ingests[0].process.log_path().with_file_name("ingest-2.log");
    assert!(Command::new("mkfifo").arg(&log).status().expect("mkfifo").success());
    let _pipe = OpenOptions::new().read(true).write(true).open(&log).expect("the pipe");
    env.start_ingest().await.expect("an ingest");
    let ingest = &env.ingests[1];
    let send = async |()| {
        let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
        let sent = Instant::now();
        let answer = env.slack.send(&ingest.url(&app), &app.secret, &webhook).await;
        assert_eq!(answer.expect("an answer").status, 200);
        assert!(sent.elapsed() < Duration::from_secs(2), "a webhook waited for the log");
    };
    eventually("the log is full, and lines are dropped", TIMEOUT * 3, async || {
        join_all(iter::repeat_n((), 64).map(send)).await;
        (ingest.metric("tidegate_log_lines_dropped_total").await.ok()? > 0.0).then_some(())
    })
    .await;
    ingest.process.terminate();
    let status = ingest.process.wait(TIMEOUT).await.expect("it ends");
    assert!(status.success(), "{status}");
}
