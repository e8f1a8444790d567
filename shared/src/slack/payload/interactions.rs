//! Fields of interactions that Tidegate reads.

use crate::slack::{
    Item,
    lenient::{First, Flag, Id, Object, Text, fields},
};

fields! {
    /// Click, shortcut, view, dialog or options load.
    #[allow(missing_docs)] // Slack's names: docs.slack.dev/reference/interaction-payloads
    pub struct Interaction<'a> {
        pub kind: Text<'a> = "type",
        /// Menu that asks for its options, in a legacy message.
        pub name: Text<'a>,
        pub trigger_id: Text<'a>,
        pub api_app_id: Text<'a>,
        pub action_ts: Text<'a>,
        pub response_url: Text<'a>,
        pub team: Object<Team<'a>>,
        pub enterprise: Id<'a>,
        pub is_enterprise_install: Flag,
        pub user: Object<User<'a>>,
        pub channel: Id<'a>,
        pub container: Object<Container<'a>>,
        pub view: Object<View<'a>>,
        pub actions: First<Action<'a>>,
        /// Message that was clicked or acted on.
        pub message: First<Item<'a>>,
        /// Legacy message that was clicked.
        pub original_message: First<Item<'a>>,
        pub message_ts: Text<'a>,
    }

    /// `team` of an interaction. `null` in organization-wide installations.
    #[allow(missing_docs)]
    pub struct Team<'a> {
        pub id: Text<'a>,
        pub enterprise_id: Text<'a>,
    }

    /// `user` of an interaction: the person who acted.
    #[allow(missing_docs)]
    pub struct User<'a> {
        pub id: Text<'a>,
        pub team_id: Text<'a>,
    }

    /// `container` of a click.
    #[allow(missing_docs)]
    pub struct Container<'a> {
        pub channel_id: Text<'a>,
        pub message_ts: Text<'a>,
        pub thread_ts: Text<'a>,
        pub is_ephemeral: Flag,
    }

    /// `view` of an interaction.
    #[allow(missing_docs)]
    pub struct View<'a> {
        pub id: Text<'a>,
        pub root_view_id: Text<'a>,
        pub team_id: Text<'a>,
        pub app_installed_team_id: Text<'a>,
    }

    /// First of `actions`.
    #[allow(missing_docs)]
    pub struct Action<'a> {
        pub kind: Text<'a> = "type",
        pub block_id: Text<'a>,
        pub action_id: Text<'a>,
        pub value: Text<'a>,
        pub action_ts: Text<'a>,
    }
}

/// Content that Slack reads in the response to an interaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SyncResponseKind {
    /// Next state of a submitted view.
    View,
    /// Options of a menu.
    Options,
    /// Errors of a submitted legacy dialog.
    Dialog,
    /// Message that replaces a clicked legacy message.
    Message,
}

impl Interaction<'_> {
    /// Returns the content that Slack reads in the response, `None` if it reads only the status.
    pub fn sync_response_kind(&self) -> Option<SyncResponseKind> {
        match self.kind.get()? {
            "view_submission" => Some(SyncResponseKind::View),
            "block_suggestion" | "dialog_suggestion" => Some(SyncResponseKind::Options),
            "dialog_submission" => Some(SyncResponseKind::Dialog),
            // A click has actions. A menu that asks for its options is named instead, as in Bolt.
            "interactive_message" if self.name.get().is_some() => Some(SyncResponseKind::Options),
            "interactive_message" => Some(SyncResponseKind::Message),
            _ => None,
        }
    }

    /// Returns the channel of the interaction.
    pub fn channel_of(&self) -> Option<&str> {
        let of_container = || self.container.0.as_ref()?.channel_id.get();
        self.channel.get().or_else(of_container)
    }

    /// Returns the message that was clicked.
    pub fn message_ts_of(&self) -> Option<&str> {
        let of_message = || self.message.0.as_ref()?.ts.get();
        let of_container = || self.container.0.as_ref()?.message_ts.get();
        of_message().or_else(of_container)
    }

    /// Returns the thread of the message that was clicked.
    pub fn thread_ts_of(&self) -> Option<&str> {
        let of_message = || self.message.0.as_ref()?.thread_ts.get();
        let of_container = || self.container.0.as_ref()?.thread_ts.get();
        of_message().or_else(of_container)
    }

    /// Returns the first message of the thread that the interaction is about.
    pub fn thread_root(&self) -> Option<&str> {
        let (container, messages) =
            (self.container.0.as_ref(), || self.message.0.iter().chain(&self.original_message.0));
        messages()
            .find_map(|message| message.thread_ts.get())
            .or_else(|| container?.thread_ts.get())
            .or_else(|| messages().find_map(|message| message.ts.get()))
            .or_else(|| container?.message_ts.get())
            .or(self.message_ts.get())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Interaction<'_> {
        serde_json::from_str::<Object<_>>(json).expect(json).0.expect("an object")
    }

    #[test]
    fn finds_kind_of_sync_response() {
        use SyncResponseKind::{Dialog, Message, Options, View};
        for (json, expected) in [
            (r#"{"type":"view_submission"}"#, Some(View)),
            (r#"{"type":"block_suggestion","value":"a"}"#, Some(Options)),
            (r#"{"type":"dialog_submission","callback_id":"c"}"#, Some(Dialog)),
            (r#"{"type":"dialog_suggestion","name":"n","value":"a"}"#, Some(Options)),
            (
                r#"{"type":"interactive_message","actions":[{"name":"n","type":"button"}]}"#,
                Some(Message),
            ),
            (r#"{"type":"interactive_message","name":"n","value":"a"}"#, Some(Options)),
            (r#"{"type":"block_actions"}"#, None),
            (r#"{"type":"view_closed"}"#, None),
            ("{}", None),
        ] {
            assert_eq!(read(json).sync_response_kind(), expected, "{json}");
        }
    }

    #[test]
    fn finds_thread_of_clicked_message() {
        for (json, expected) in [
            (r#"{"message":{"ts":"1.2","thread_ts":"1.1"},"message_ts":"1.2"}"#, Some("1.1")),
            (r#"{"message":[{"ts":"1.2"}]}"#, Some("1.2")),
            (r#"{"container":{"message_ts":"1.2","thread_ts":"1.1"}}"#, Some("1.1")),
            (r#"{"message":{"ts":"1.2"},"container":{"thread_ts":"1.1"}}"#, Some("1.1")),
            (r#"{"container":{"message_ts":"1.2","is_ephemeral":true}}"#, Some("1.2")),
            (r#"{"message_ts":"1.2","original_message":{"thread_ts":"1.1"}}"#, Some("1.1")),
            (r#"{"message_ts":"1.2","original_message":{"text":"x"}}"#, Some("1.2")),
            (r#"{"type":"shortcut"}"#, None),
        ] {
            assert_eq!(read(json).thread_root(), expected, "{json}");
        }
    }
}
