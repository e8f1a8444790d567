//! Traces from Slack's request to the processing of its webhook, across the stream.

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Uri},
    routing::post,
};
use shared::stream::STREAM;
use std::sync::{Arc, Mutex};
use tests::{
    eventually::eventually,
    slack::webhook::Webhook,
    test_env::{Size, TIMEOUT, TestEnv, agent_id},
};

type Received = Arc<Mutex<Vec<Bytes>>>;

/// Starts a collector that records path, header `authorization` and body of each request (OTLP:
/// protobuf, in which texts and ids are readable).
async fn start_collector() -> (String, Received) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let received = Received::default();
    let keep =
        async |State(received): State<Received>, uri: Uri, headers: HeaderMap, body: Bytes| {
            let authorization = headers.get("authorization").map(|value| value.as_bytes());
            let kept =
                [uri.path().as_bytes(), b" ", authorization.unwrap_or_default(), b" ", &body];
            received.lock().expect("no panic").push(kept.concat().into());
        };
    let routes = Router::new()
        .route("/v1/traces", post(keep))
        .route("/custom", post(keep))
        .with_state(Arc::clone(&received));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (address, received)
}

fn contains_all(received: &Received, words: &[&[u8]]) -> bool {
    let received = received.lock().expect("no panic");
    received
        .iter()
        .any(|body| words.iter().all(|word| body.windows(word.len()).any(|part| part == *word)))
}

/// The spans of processing, agent call and reply are linked to the trace of Slack's request, and
/// hold no text or secret.
#[tokio::test]
async fn links_processing_to_request() {
    let mut env = TestEnv::without_processes(Size { ingests: 0, workers: 0, own_postgres: false })
        .await
        .expect("servers");
    let (address, received) = start_collector().await;
    env.set("OTEL_EXPORTER_OTLP_ENDPOINT", &address);
    env.start_ingest().await.expect("an ingest");
    env.start_worker().await.expect("a worker");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "the words of a user");
    env.send(&app, &webhook).await.expect("an answer");
    env.wait_for_outcome(&webhook.dedup_key).await;

    let js = async_nats::jetstream::new(env.client().clone());
    let stream = js.get_stream(STREAM).await.expect("the stream");
    let stored = stream.get_last_raw_message_by_subject("slack.in.*.*").await.expect("a message");
    let traceparent =
        stored.headers.get("traceparent").expect("the request's trace context").to_string();
    let trace = u128::from_str_radix(&traceparent[3..35], 16).expect("hex").to_be_bytes();

    let request = [
        &trace[..],
        b"/v1/traces ",
        b"POST /api/v1/webhooks/{connection}",
        b"send slack.in.{partition}.{connection}",
    ];
    eventually("the request's trace arrives", TIMEOUT, async || {
        contains_all(&received, &request).then_some(())
    })
    .await;
    let processing = [
        &trace[..],
        b"process slack.in.{partition}.{connection}",
        webhook.dedup_key.as_str().as_bytes(),
    ];
    eventually("the trace of the processing arrives", TIMEOUT, async || {
        contains_all(&received, &processing).then_some(())
    })
    .await;
    // The call of the agent belongs to the trace of the processing.
    let request = env.agent.requests().pop().expect("a question");
    let called = request.headers.get("traceparent").expect("a trace context");
    let called = called.to_str().expect("a text").to_owned();
    let of_call = u128::from_str_radix(&called[3..35], 16).expect("hex").to_be_bytes();
    assert!(contains_all(&received, &[&of_call, b"process slack.in.{partition}.{connection}"]));
    let reply = [&trace[..], b"send chat.postMessage", webhook.dedup_key.as_str().as_bytes()];
    eventually("the reply's trace arrives", TIMEOUT, async || {
        contains_all(&received, &reply).then_some(())
    })
    .await;
    for secret in ["the words of a user", app.secret.as_str(), app.token.as_str()] {
        assert!(!contains_all(&received, &[secret.as_bytes()]), "{secret} is in a trace");
    }
}

/// A streamed answer is one span, with the agent's first event and its end.
#[tokio::test]
async fn records_run_as_one_span() {
    let mut env = TestEnv::without_processes(Size { ingests: 0, workers: 0, own_postgres: false })
        .await
        .expect("servers");
    let (address, received) = start_collector().await;
    env.set("OTEL_EXPORTER_OTLP_ENDPOINT", &address);
    env.start_ingest().await.expect("an ingest");
    env.start_worker().await.expect("a worker");
    let app = env.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "stream:5:20:8 please");
    env.send(&app, &webhook).await.expect("an answer");
    env.wait_for_outcome(&webhook.dedup_key).await;
    let run = env.agent.requests()[0].question["run"].as_str().expect("a run").to_owned();
    let span: [&[u8]; 4] = [b"run of agent", run.as_bytes(), b"first event received", b"run ended"];
    eventually("the run's span arrives", TIMEOUT, async || {
        contains_all(&received, &span).then_some(())
    })
    .await;
}

/// Traces follow the variables of OpenTelemetry. The URL for traces overrides the base URL and is
/// used unchanged.
#[tokio::test]
async fn reads_opentelemetry_variables() {
    let mut env = TestEnv::without_processes(Size { ingests: 0, workers: 0, own_postgres: false })
        .await
        .expect("servers");
    let (address, received) = start_collector().await;
    env.set("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    env.set("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &format!("{address}/custom"));
    env.set("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20collector-token");
    env.set("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=staging-7");
    env.start_ingest().await.expect("an ingest");
    let app = env.connect().await.expect("a connection");
    let webhook = Webhook::message(&env.slack, &app, "C1", "U1", "hello");
    env.send(&app, &webhook).await.expect("an answer");
    let sent: [&[u8]; 4] = [
        b"/custom Bearer collector-token ",
        b"POST /api/v1/webhooks/{connection}",
        b"service.name\x12\x08\x0a\x06ingest",
        b"staging-7",
    ];
    eventually("the trace arrives", TIMEOUT, async || contains_all(&received, &sent).then_some(()))
        .await;

    env.set("OTEL_SERVICE_NAME", "gateway-7");
    env.start_ingest().await.expect("another ingest");
    let url = env.ingests[1].url(&app);
    env.slack.send(&url, &app.secret, &webhook).await.expect("an answer");
    let named: [&[u8]; 2] = [b"service.name\x12\x0b\x0a\x09gateway-7", b"staging-7"];
    eventually("the trace arrives", TIMEOUT, async || {
        contains_all(&received, &named).then_some(())
    })
    .await;
}
