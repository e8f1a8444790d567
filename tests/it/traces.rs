//! A webhook can be followed from Slack's request to its handling, across the stream.

use axum::{Router, body::Bytes, extract::State, routing::post};
use shared::stream::STREAM;
use std::sync::{Arc, Mutex};
use tests::{
    slack::webhook::Webhook,
    until::until,
    world::{SOON, Size, World, agent_id},
};

type Received = Arc<Mutex<Vec<Bytes>>>;

/// A collector: keeps what it is sent, as it is sent (OTLP: protobuf, whose texts and ids stand in it plainly).
async fn collector() -> (String, Received) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = format!("http://{}", listener.local_addr().expect("an address"));
    let received = Received::default();
    let keep = async |State(received): State<Received>, body: Bytes| {
        received.lock().expect("nobody panics here").push(body);
    };
    let routes = Router::new().route("/v1/traces", post(keep)).with_state(Arc::clone(&received));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (address, received)
}

fn holds(received: &Received, words: &[&[u8]]) -> bool {
    let received = received.lock().expect("nobody panics here");
    received
        .iter()
        .any(|body| words.iter().all(|word| body.windows(word.len()).any(|part| part == *word)))
}

#[tokio::test]
async fn the_processing_of_a_webhook_and_its_reply_are_linked_to_the_request_that_brought_it() {
    let mut world = World::without_processes(Size { ingests: 0, workers: 0, own_postgres: false })
        .await
        .expect("servers");
    let (address, received) = collector().await;
    world.set("TIDEGATE_OTLP_ENDPOINT", &address);
    world.start_ingest().await.expect("an ingest");
    world.start_worker().await.expect("a worker");
    let app = world.connect_as(|new| new.agent = Some(agent_id())).await.expect("a connection");
    let webhook = Webhook::message(&world.slack, &app, "C1", "U1", "the words of a user");
    world.send(&app, &webhook).await.expect("an answer");
    world.handled(&webhook.dedupe).await;

    let js = async_nats::jetstream::new(world.client().clone());
    let stream = js.get_stream(STREAM).await.expect("the stream");
    let stored = stream.get_last_raw_message_by_subject("slack.in.*.*").await.expect("a message");
    let traceparent =
        stored.headers.get("traceparent").expect("the request's trace context").to_string();
    let trace = u128::from_str_radix(&traceparent[3..35], 16).expect("hex").to_be_bytes();

    let request = [
        &trace[..],
        b"POST /api/v1/webhooks/{connection}",
        b"send slack.in.{partition}.{connection}",
    ];
    until("the request's trace arrives", SOON, async || holds(&received, &request).then_some(()))
        .await;
    let processing = [
        &trace[..],
        b"process slack.in.{partition}.{connection}",
        webhook.dedupe.as_str().as_bytes(),
    ];
    until("the linked trace arrives", SOON, async || holds(&received, &processing).then_some(()))
        .await;
    let reply = [&trace[..], b"send chat.postMessage", webhook.dedupe.as_str().as_bytes()];
    until("the reply's trace arrives", SOON, async || holds(&received, &reply).then_some(())).await;
    for secret in ["the words of a user", app.secret.as_str(), app.token.as_str()] {
        assert!(!holds(&received, &[secret.as_bytes()]), "{secret} is in a trace");
    }
}
