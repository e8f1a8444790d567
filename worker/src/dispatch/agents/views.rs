//! Answers views and menus that no app handles, and builds the notice for a delivery that is given
//! up.

use super::{Completion, late_view_response};
use crate::routing::{self, Webhook};
use serde_json::{Value, json};
use shared::{codec::slack::Inbound, store::Connection, types::Outgoing};

/// Answers a submission or a menu without an app: the view closes, the menu is empty.
pub fn answer_view(webhook: &Webhook<'_>) -> Completion {
    let Inbound::Interaction(interaction) = &webhook.inbound else {
        return Completion::new("completed");
    };
    match interaction.kind.get() {
        Some("view_submission") => {
            // If the response is late, the open "working on it" view shows that the request is
            // done.
            let id = interaction.view.0.as_ref().and_then(|view| view.id.get());
            let submission = json!({ "view": { "id": id } });
            let late = late_view_response::for_submission(&submission, &Value::Null);
            Completion::respond("completed", "", late.into_iter().collect())
        }
        Some("block_suggestion") => {
            Completion::respond("completed", r#"{"options":[]}"#, Vec::new())
        }
        _ => Completion::new("completed"),
    }
}

/// Returns the notice that a delivery was given up, with a reference that an operator can look up.
pub fn given_up(webhook: &Webhook<'_>, connection: &Connection) -> Option<Outgoing> {
    let key = webhook.envelope.dedupe.as_str();
    let reference = key.rsplit(':').next().unwrap_or(key);
    let text =
        format!("The agent did not get this request. Ask an administrator about `{reference}`.");
    match &webhook.inbound {
        Inbound::Interaction(interaction) if interaction.kind.get() == Some("view_submission") => {
            late_view_response::failed(&late_view_response::submission(webhook.envelope), &text)
        }
        _ => routing::notice(webhook, connection.team.as_ref(), &text),
    }
}
