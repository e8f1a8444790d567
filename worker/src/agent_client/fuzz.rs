//! Fuzz targets for the answers of agents and apps.

use super::{
    AgentEvent,
    client::{ERROR_CHARS, Response, refusal},
    event_stream::tests::events_of,
    forward::is_unhandled_by_bolt,
    reply::parse_reply,
};
use crate::answer_generator::body;
use serde_json::Value;
use shared::{
    domain::{AgentMode, WebhookKind},
    secrets::Secret,
    store::Agent,
};
use std::time::Duration;

const INPUTS: usize = 20_000;
const TIME: Duration = Duration::from_secs(5);

fn reads_reply(input: &[u8]) {
    let Ok(Some(reply)) = parse_reply(&body(input)) else { return };
    if reply.message.is_null() {
        return assert!(reply.ask.is_some());
    }
    let message = reply.message.as_object().expect("an object");
    assert!(message.keys().all(|name| name == "text" || name == "blocks"), "{message:?}");
    let text = message["text"].as_str().expect("a text");
    let blocks = message.get("blocks").and_then(Value::as_array);
    assert!(!text.is_empty() || blocks.is_some_and(|blocks| !blocks.is_empty()));
}

#[test]
fn reads_any_reply() {
    bolero::check!().with_iterations(INPUTS).for_each(reads_reply);
    bolero::check!().with_test_time(TIME).for_each(reads_reply);
}

fn agent() -> Agent {
    Agent {
        org: "acme".parse().expect("an id"),
        id: "support".parse().expect("an id"),
        name: "Support".into(),
        mode: AgentMode::Reply,
        url: "https://agent.example".into(),
        secret: Secret::new("secret".into()).expect("a secret"),
        timeout: Duration::from_secs(1),
        max_concurrent: 1,
        max_per_user: 1,
        retry_for: None,
        keep_for: Duration::from_secs(1),
        signs_as_slack: false,
        headers: Default::default(),
        policies: Default::default(),
    }
}

/// Checks the classification of an app's response. The input has a byte for the kind, one for the
/// status, and the body.
fn classifies_response(input: &[u8]) {
    let [kind, status, rest @ ..] = input else { return };
    let kinds = [
        WebhookKind::Event,
        WebhookKind::Command,
        WebhookKind::Interaction,
        WebhookKind::Options,
        WebhookKind::Unknown,
    ];
    let status = 400 + u16::from(*status);
    let body = body(rest);
    let _ = is_unhandled_by_bolt(kinds[usize::from(*kind) % kinds.len()], &body);
    let response = Response { status, body: Ok(body), retry_after: None };
    let agent = agent();
    let message = refusal(&agent, &response).message;
    assert!(message.chars().count() <= ERROR_CHARS + 40, "{message}");
    assert!(!message.contains(char::is_control), "{message:?}");
}

#[test]
fn classifies_any_response_of_an_app() {
    bolero::check!().with_iterations(INPUTS).for_each(classifies_response);
    bolero::check!().with_test_time(TIME).for_each(classifies_response);
}

/// Checks that the events of a stream are bounded and do not depend on the chunks. The input has a
/// byte for the length of the chunks, and the bytes of the stream.
fn reads_stream(input: &[u8]) {
    let [length, bytes @ ..] = input else { return };
    let chunks = |length: usize| bytes.chunks(length).map(bytes::Bytes::copy_from_slice).collect();
    let read = |chunks| futures_util::FutureExt::now_or_never(events_of(&agent(), chunks));
    let read = |chunks| read(chunks).expect("it never waits");
    let whole = read(chunks(bytes.len().max(1)));
    assert_eq!(whole, read(chunks(usize::from(*length).max(1))));
    for event in whole.0 {
        let id = event.id.unwrap_or_default();
        assert!(id.len() <= 256 && id.bytes().all(|b| b.is_ascii_graphic()), "{id:?}");
        assert_ne!(event.event, AgentEvent::Ignored);
    }
}

#[test]
fn reads_any_stream() {
    bolero::check!().with_iterations(INPUTS).for_each(reads_stream);
    bolero::check!().with_test_time(TIME).for_each(reads_stream);
}
