//! Places where Slack shows a notice about a webhook that is not stored.

use shared::{
    domain::WebhookKind,
    slack::{BodyParts, InboundPayload, SyncResponseKind, first_dialog_element, first_input_block},
};

/// Place in a response where Slack shows a notice to the person who acted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoticePlace {
    /// Ephemeral message, in response to a command.
    Command,
    /// Ephemeral message beside a legacy message that was clicked.
    LegacyMessage,
    /// Empty options menu, which has no place for a text.
    Options,
    /// Error at this input block of a submitted view, which stays open.
    InputBlock(String),
    /// Error at this element of a submitted legacy dialog, which stays open.
    DialogElement(String),
    /// No place. Slack shows no body in response to a click, a shortcut, a closed view or a view
    /// without inputs, but an error of its own if the status is not 200. No person waits for the
    /// response to an event.
    Nowhere,
}

impl NoticePlace {
    /// Returns the place for a webhook.
    pub fn of(kind: WebhookKind, inbound: &InboundPayload<'_>, parts: &BodyParts<'_>) -> Self {
        match (kind, inbound) {
            (WebhookKind::Command, _) => Self::Command,
            (WebhookKind::Options, _) => Self::Options,
            (_, InboundPayload::Interaction(interaction)) => {
                match interaction.sync_response_kind() {
                    Some(SyncResponseKind::View) => {
                        first_input_block(parts).map_or(Self::Nowhere, Self::InputBlock)
                    }
                    Some(SyncResponseKind::Dialog) => {
                        first_dialog_element(parts).map_or(Self::Nowhere, Self::DialogElement)
                    }
                    Some(SyncResponseKind::Message) => Self::LegacyMessage,
                    Some(SyncResponseKind::Options) => Self::Options,
                    None => Self::Nowhere,
                }
            }
            _ => Self::Nowhere,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::classify;
    use shared::domain::MediaType;

    fn place(media: MediaType, body: &str) -> NoticePlace {
        let parts = BodyParts::split(media, body.as_bytes());
        let inbound = parts.read();
        NoticePlace::of(classify::kind(&inbound), &inbound, &parts)
    }

    #[test]
    fn finds_place_for_each_kind() {
        use NoticePlace::{Command, DialogElement, InputBlock, LegacyMessage, Nowhere, Options};
        let event = place(MediaType::Json, r#"{"type":"event_callback","event_id":"Ev1"}"#);
        assert_eq!(event, Nowhere);
        for (body, expected) in [
            ("command=/lobu&text=help", Command),
            (r#"payload={"type":"block_suggestion","value":"a"}"#, Options),
            (
                r#"payload={"type":"view_submission","view":{"blocks":[{"type":"section"},
                    {"type":"input","block_id":"b"}]}}"#,
                InputBlock("b".into()),
            ),
            (r#"payload={"type":"view_submission","view":{"blocks":[]}}"#, Nowhere),
            (
                r#"payload={"type":"dialog_submission","submission":{"email":"a","name":"b"}}"#,
                DialogElement("email".into()),
            ),
            (r#"payload={"type":"dialog_submission","submission":{}}"#, Nowhere),
            (r#"payload={"type":"interactive_message","actions":[{"name":"n"}]}"#, LegacyMessage),
            (r#"payload={"type":"block_actions","actions":[{}]}"#, Nowhere),
            (r#"payload={"type":"shortcut"}"#, Nowhere),
            (r#"payload={"type":"view_closed"}"#, Nowhere),
            ("other=form", Nowhere),
        ] {
            assert_eq!(place(MediaType::Form, body), expected, "{body}");
        }
    }
}
