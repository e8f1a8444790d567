//! What operators see: health, figures and logs; nothing that is nobody's business.

use futures_util::future::join_all;
use std::{
    fs::OpenOptions,
    iter,
    process::Command,
    time::{Duration, Instant},
};
use tests::{
    binaries::Binaries,
    fixtures, port,
    slack::webhook::Webhook,
    until::until,
    world::{SMALL, SOON, Size, World, agent_id},
};

#[tokio::test]
async fn a_worker_tells_health_and_figures_too() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "hello");
    world.send(&app, &webhook).await.expect("an answer");
    world.handled(&webhook.dedupe).await;
    let worker = &world.workers[0];
    for path in ["/healthz", "/readyz"] {
        let answer = reqwest::get(worker.admin(path)).await.expect("an answer");
        assert_eq!(answer.status().as_u16(), 200, "{path}");
    }
    until("the commit is counted", SOON, async || {
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

#[tokio::test]
async fn health_and_figures_are_told_on_a_port_of_their_own() {
    let world = World::start(SMALL).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "hello");
    for _ in 0..2 {
        world.send(&app, &webhook).await.expect("an answer");
    }
    let fixtures = fixtures::all().expect("fixtures");
    let withheld = fixtures.iter().find(|fixture| fixture.name == "app_rate_limited");
    let withheld = &withheld.expect("a fixture").webhook;
    assert_eq!(world.send(&app, withheld).await.expect("an answer").status, 200);
    let ingest = &world.ingests[0];
    let status = async |url: String| reqwest::get(url).await.expect("an answer").status().as_u16();
    assert_eq!(status(ingest.admin("/healthz")).await, 200);
    for path in ["/healthz", "/readyz", "/metrics"] {
        assert_eq!(status(ingest.path(path)).await, 404, "{path} is not for the public");
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

#[tokio::test]
async fn a_process_is_asked_by_its_own_program_whether_it_is_ready() {
    let size = Size { ingests: 0, workers: 0, own_postgres: false };
    let mut world = World::without_processes(size).await.expect("servers");
    world.set("TIDEGATE_DRAIN_DELAY", "60s");
    world.start_ingest().await.expect("an ingest");
    let ask = |admin: &str| {
        let program = &Binaries::get().expect("binaries").ingest;
        let mut command = Command::new(program);
        command.arg("healthcheck").env_clear().env("TIDEGATE_ADMIN_LISTEN", admin);
        let ran = command.output().expect("it runs");
        (ran.status.code(), String::from_utf8(ran.stderr).expect("text"))
    };
    let url = world.ingests[0].admin("");
    let admin = url.strip_prefix("http://").expect("an address");
    assert_eq!(ask(admin), (Some(0), String::new()));
    // As the image is told: what listens everywhere is asked here.
    let everywhere = admin.replace("127.0.0.1", "0.0.0.0");
    assert_eq!(ask(&everywhere), (Some(0), String::new()));

    // Without NATS it still has something to say to Slack, and a balancer without ingests has not.
    world.nats.kill();
    let metric = async || world.ingests[0].metric("tidegate_ingest_nats_connected").await.ok();
    until("it knows that NATS is away", SOON, async || (metric().await == Some(0.0)).then_some(()))
        .await;
    assert_eq!(ask(admin), (Some(0), String::new()));

    world.ingests[0].process.terminate();
    until("it says that it stops", SOON, async || {
        let (code, said) = ask(admin);
        (code == Some(1) && said.contains("not ready") && said.contains("503")).then_some(())
    })
    .await;
    let nobody = format!("127.0.0.1:{}", port::free().expect("a port"));
    let (code, said) = ask(&nobody);
    assert!(code == Some(1) && said.contains("no answer"), "{code:?} {said}");
}

#[tokio::test]
async fn a_webhook_is_one_line_in_the_log_without_its_words_or_secrets() {
    let mut world = World::start(SMALL).await.expect("a world");
    world.set("TIDEGATE_LOG", "ingest=trace,shared=trace,info");
    world.set("TIDEGATE_LOG_JSON", "true");
    world.start_ingest().await.expect("an ingest that tells everything");
    let app = world.connect().await.expect("a connection");
    let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "the words of a user");
    let url = world.ingests[1].url(&app);
    assert_eq!(world.slack.send(&url, &app.secret, &webhook).await.expect("an answer").status, 200);
    assert_eq!(world.slack.send(&url, "wrong", &webhook).await.expect("an answer").status, 401);
    let (log, webhooks) = until("both are in the log", SOON, async || {
        let log = world.ingests[1].process.log();
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

#[tokio::test]
async fn a_log_that_nobody_reads_holds_nothing_up() {
    let mut world = World::start(Size { workers: 0, ..SMALL }).await.expect("a world");
    let app = world.connect().await.expect("a connection");
    // Many lines a webhook, into a pipe that is open and never read.
    world.set("TIDEGATE_LOG", "trace");
    let log = world.ingests[0].process.log_path().with_file_name("ingest-2.log");
    assert!(Command::new("mkfifo").arg(&log).status().expect("mkfifo").success());
    let _pipe = OpenOptions::new().read(true).write(true).open(&log).expect("the pipe");
    world.start_ingest().await.expect("an ingest");
    let ingest = &world.ingests[1];
    let send = async |()| {
        let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "hello");
        let sent = Instant::now();
        let answer = world.slack.send(&ingest.url(&app), &app.secret, &webhook).await;
        assert_eq!(answer.expect("an answer").status, 200);
        assert!(sent.elapsed() < Duration::from_secs(2), "a webhook waited for the log");
    };
    until("the log is full, and lines are dropped", SOON * 3, async || {
        join_all(iter::repeat_n((), 64).map(send)).await;
        (ingest.metric("tidegate_log_lines_dropped_total").await.ok()? > 0.0).then_some(())
    })
    .await;
    ingest.process.terminate();
    let status = ingest.process.wait(SOON).await.expect("it ends");
    assert!(status.success(), "{status}");
}
