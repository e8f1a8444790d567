//! Default responses to views, menus and legacy interactions that no app handles, and failure
//! notices of deliveries that were given up.

use super::{Completion, late_view_response};
use crate::routing::{self, Webhook};
use bytes::Bytes;
use serde_json::{Value, json};
use shared::{
    domain::{Destination, OutgoingMessage},
    slack::{InboundPayload, SyncResponseKind},
    store::Connection,
};

/// Returns the default response to an interaction: closes a view or dialog, gives a menu no
/// options, leaves a message unchanged.
pub fn answer_view(webhook: &Webhook<'_>) -> Completion {
    let InboundPayload::Interaction(interaction) = &webhook.inbound else {
        return Completion::new("completed");
    };
    match interaction.sync_response_kind() {
        Some(SyncResponseKind::View) => {
            // A late response updates the waiting view to "Done".
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

/// Returns the notice that a delivery was given up. It has a reference by which an operator finds
/// the webhook.
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

/// Returns the sync response that shows a failure notice in its view, `None` if the notice is not
/// for a view.
pub fn failure_response(notice: &OutgoingMessage) -> Option<Bytes> {
    let Destination::UpdateView { .. } = notice.to else { return None };
    Some(json!({ "response_action": "update", "view": notice.message }).to_string().into())
}
