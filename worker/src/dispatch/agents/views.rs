//! Answers views, menus and legacy interactions that no app handles, and builds the notice for a
//! delivery that is given up.

use super::{Completion, late_view_response};
use crate::routing::{self, Webhook};
use bytes::Bytes;
use serde_json::{Value, json};
use shared::{
    domain::{Destination, OutgoingMessage},
    slack::{InboundPayload, SyncResponseKind},
    store::Connection,
};

/// Answers an interaction without an app: the view or dialog closes, the menu is empty, the message
/// stays.
pub fn answer_view(webhook: &Webhook<'_>) -> Completion {
    let InboundPayload::Interaction(interaction) = &webhook.inbound else {
        return Completion::new("completed");
    };
    match interaction.sync_response_kind() {
        Some(SyncResponseKind::View) => {
            // If the response is late, the open "working on it" view shows that the request is
            // done.
            let id = interaction.view.0.as_ref().and_then(|view| view.id.get());
            let submission = json!({ "view": { "id": id } });
            let late = late_view_response::build(&submission, &Value::Null);
            Completion::with_response("completed", "", late.into_iter().collect())
        }
        Some(SyncResponseKind::Options) => {
            Completion::with_response("completed", r#"{"options":[]}"#, Vec::new())
        }
        Some(SyncResponseKind::Dialog | SyncResponseKind::Message) => {
            Completion::with_response("completed", "", Vec::new())
        }
        None => Completion::new("completed"),
    }
}

/// Returns the notice that a delivery was given up, with a reference that an operator can look up.
pub fn failure_notice(webhook: &Webhook<'_>, connection: &Connection) -> Option<OutgoingMessage> {
    let key = webhook.envelope.dedup_key.as_str();
    let reference = key.rsplit(':').next().unwrap_or(key);
    let text =
        format!("The agent did not get this request. Ask an administrator about `{reference}`.");
    match &webhook.inbound {
        InboundPayload::Interaction(interaction)
            if interaction.kind.get() == Some("view_submission") =>
        {
            late_view_response::build_failure(
                &late_view_response::parse_submission(webhook.envelope),
                &text,
            )
        }
        _ => routing::notice(webhook, connection.team.as_ref(), &text),
    }
}

/// Returns the response to Slack's open request that shows a failure, `None` if it is not shown in a
/// view.
pub fn failure_response(notice: &OutgoingMessage) -> Option<Bytes> {
    let Destination::UpdateView { .. } = notice.to else { return None };
    Some(json!({ "response_action": "update", "view": notice.message }).to_string().into())
}
