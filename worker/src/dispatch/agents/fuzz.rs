//! Fuzz target: responses of apps that are relayed to Slack.

use super::{Completion, forward::complete_handled};
use crate::{answer_generator::body, routing::Webhook};
use bytes::Bytes;
use serde_json::{Value, json};
use shared::{
    domain::{ConnectionId, Destination, HeaderToken, MediaType, WebhookKind},
    slack::BodyParts,
    stream::{Conversation, DedupKey, Envelope, Lane, Partition},
};
use std::time::Duration;

const INPUTS: usize = 20_000;
const TIME: Duration = Duration::from_secs(5);
const KINDS: [&str; 5] =
    ["command", "view_submission", "block_suggestion", "dialog_submission", "interactive_message"];

/// Returns the completion of a webhook of a kind to which an app responded with `body`.
fn complete(kind: &str, body: &[u8]) -> Completion {
    let url = "https://hooks.slack.com/actions/1/2";
    let payload = json!({
        "type": kind, "response_url": url, "callback_id": "c", "trigger_id": "1.1",
        "channel": { "id": "C1" }, "user": { "id": "U1" },
        "view": { "id": "V1", "type": "modal", "blocks": [
            { "type": "input", "block_id": "height", "element": { "action_id": "a" } },
            "odd", { "block_id": 7, "element": "odd" },
        ], "state": { "values": { "height": { "a": { "value": "2" } } } } },
    });
    let mut form = form_urlencoded::Serializer::new(String::new());
    let form = match kind {
        "command" => form.append_pair("command", "/tide").append_pair("response_url", url),
        _ => form.append_pair("payload", &payload.to_string()),
    };
    let connection: ConnectionId = "00000000000000000000000000000007".parse().expect("an id");
    let envelope = Envelope {
        connection,
        partition: Partition::of(connection, None),
        kind: WebhookKind::Interaction,
        lane: Lane::of(connection, Conversation::WithoutChannel("")),
        dedup_key: DedupKey::event(connection, "Ev1"),
        received_at_ms: 1_755_000_000_000,
        media: MediaType::Form,
        signature: HeaderToken::new("v0=00").expect("a word"),
        timestamp: HeaderToken::new("1755000000").expect("a word"),
        retry: None,
        traceparent: None,
        reply: None,
        body: Bytes::from(form.finish()),
    };
    let parts = BodyParts::split(envelope.media, &envelope.body);
    complete_handled(&Webhook { envelope: &envelope, inbound: parts.read() }, body)
}

/// Checks the relayed response. `input` is a byte for the kind, then the body of the response.
fn relays_response(input: &[u8]) {
    let Some((&kind, rest)) = input.split_first() else { return };
    let kind = KINDS[usize::from(kind) % KINDS.len()];
    let completion = complete(kind, &body(rest));
    let (now, late) = completion.response.unwrap_or_default();
    assert!(now.is_empty() || serde_json::from_slice::<Value>(&now).is_ok(), "{now:?}");
    for sent in completion.messages.iter().chain(&late) {
        assert!(sent.message.is_object(), "{:?}", sent.message);
        if let Destination::UpdateView { view_id } = &sent.to {
            assert_eq!(view_id, "V1");
        }
    }
}

#[test]
fn relays_any_response_of_an_app() {
    bolero::check!().with_iterations(INPUTS).for_each(relays_response);
    bolero::check!().with_test_time(TIME).for_each(relays_response);
}
