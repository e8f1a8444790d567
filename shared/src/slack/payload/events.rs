//! Fields of the Events API that Tidegate reads.

use crate::slack::lenient::{First, Flag, Id, List, Number, Object, Text, fields};

fields! {
    /// Outer object of the Events API.
    #[allow(missing_docs)] // Slack's names: docs.slack.dev/apis/events-api
    pub struct EventBody<'a> {
        pub kind: Text<'a> = "type",
        pub challenge: Text<'a>,
        pub event_id: Text<'a>,
        pub event_time: Number,
        pub api_app_id: Text<'a>,
        pub team_id: Text<'a>,
        pub enterprise_id: Text<'a>,
        /// Workspace in which the event is shown. In a shared channel it may be the only one named.
        pub context_team_id: Text<'a>,
        pub context_enterprise_id: Text<'a>,
        pub authorizations: List<Authorization<'a>>,
        pub event: Object<Event<'a>>,
        pub minute_rate_limited: Number,
    }

    /// Installation that an event was sent for.
    #[allow(missing_docs)]
    pub struct Authorization<'a> {
        pub team_id: Text<'a>,
        pub enterprise_id: Text<'a>,
        pub is_enterprise_install: Flag,
    }

    /// Inner event.
    #[allow(missing_docs)]
    pub struct Event<'a> {
        pub kind: Text<'a> = "type",
        pub subtype: Text<'a>,
        pub channel: Id<'a>,
        /// Channel in events about files, pins and metadata.
        pub channel_id: Id<'a>,
        pub channel_type: Text<'a>,
        pub user: Id<'a>,
        pub user_id: Id<'a>,
        /// Workspace of the author, in a channel shared with another company.
        pub user_team: Text<'a>,
        pub bot_id: Text<'a>,
        /// Bot that wrote a message. Some messages have it without a `bot_id`.
        pub bot_profile: Object<BotProfile<'a>>,
        pub text: Text<'a>,
        pub ts: Text<'a>,
        pub thread_ts: Text<'a>,
        /// Message that a link or metadata belongs to.
        pub message_ts: Text<'a>,
        /// Message that was deleted.
        pub deleted_ts: Text<'a>,
        pub hidden: Flag,
        /// Metadata that the author attached.
        pub metadata: Object<Metadata<'a>>,
        /// Channel and message of a reaction, pin or star.
        pub item: First<Item<'a>>,
        /// Edited message, with its own `ts`.
        pub message: First<Item<'a>>,
        /// Message before its edit or deletion.
        pub previous_message: First<Item<'a>>,
        /// Ids of an assistant event.
        pub assistant_thread: Object<AssistantThread<'a>>,
        /// Items that the person has open. Present only if the Slack app is declared as an agent.
        pub app_context: Object<AppContext<'a>>,
    }

    /// `event.bot_profile`.
    #[allow(missing_docs)]
    pub struct BotProfile<'a> {
        pub id: Text<'a>,
    }

    /// `event.metadata`: docs.slack.dev/messaging/message-metadata.
    #[allow(missing_docs)]
    pub struct Metadata<'a> {
        pub event_type: Text<'a>,
        pub event_payload: Object<TidegateMetadata<'a>>,
    }

    /// Metadata that Tidegate attaches to its messages.
    #[allow(missing_docs)]
    pub struct TidegateMetadata<'a> {
        pub hops: Number,
        /// Agent that answered, as `<organization>/<agent>`.
        pub agent: Text<'a>,
    }

    /// Message that an event or a click refers to.
    #[allow(missing_docs)]
    pub struct Item<'a> {
        pub channel: Id<'a>,
        pub user: Id<'a>,
        pub bot_id: Text<'a>,
        pub text: Text<'a>,
        pub ts: Text<'a>,
        pub thread_ts: Text<'a>,
        pub metadata: Object<Metadata<'a>>,
        /// Message of a pin or star.
        pub message: First<Box<Item<'a>>>,
    }

    /// `event.app_context`.
    #[allow(missing_docs)]
    pub struct AppContext<'a> {
        pub entities: List<ContextEntity<'a>>,
    }

    /// Channel, canvas or message that a person has open.
    #[allow(missing_docs)]
    pub struct ContextEntity<'a> {
        pub kind: Text<'a> = "type",
    }

    /// `event.assistant_thread`.
    #[allow(missing_docs)]
    pub struct AssistantThread<'a> {
        pub channel_id: Text<'a>,
        pub thread_ts: Text<'a>,
        pub user_id: Text<'a>,
    }
}

impl EventBody<'_> {
    /// Returns whether the event is about an installation of the app, and not about a conversation.
    pub fn is_installation_event(&self) -> bool {
        let kind = self.event.0.as_ref().and_then(|event| event.kind.get());
        matches!(
            kind,
            Some("app_uninstalled" | "tokens_revoked" | "channel_id_changed" | "team_join")
        )
    }
}

impl Event<'_> {
    /// Returns the channel that the event is about.
    pub fn channel_of(&self) -> Option<&str> {
        let of_item = || self.item.0.as_ref()?.channel.get();
        let of_assistant = || self.assistant_thread.0.as_ref()?.channel_id.get();
        let channel = self.channel.get().or(self.channel_id.get());
        channel.or_else(of_item).or_else(of_assistant)
    }

    /// Returns the user who caused the event.
    pub fn user_of(&self) -> Option<&str> {
        let of_assistant = || self.assistant_thread.0.as_ref()?.user_id.get();
        self.user.get().or(self.user_id.get()).or_else(of_assistant)
    }

    /// Returns the bot that wrote a message.
    pub fn bot(&self) -> Option<&str> {
        self.bot_id.get().or_else(|| self.bot_profile.0.as_ref()?.id.get())
    }

    /// Returns whether a bot wrote a message. The message may have neither a bot id nor a user.
    pub fn is_by_bot(&self) -> bool {
        self.bot_id.get().is_some()
            || self.bot_profile.0.is_some()
            || self.subtype.get() == Some("bot_message")
    }

    /// Returns the message that the event is about: itself, or one that was edited, deleted,
    /// reacted to or pinned.
    pub fn message_ts_of(&self) -> Option<&str> {
        let of_item = || self.item.0.as_ref()?.message_ts();
        self.messages()
            .find_map(|message| message.ts.get())
            .or(self.deleted_ts.get())
            .or_else(of_item)
            .or(self.message_ts.get())
            .or(self.ts.get())
    }

    /// Returns the first message of the thread that the event is about. Slack omits it for a
    /// message outside threads.
    pub fn thread_ts_of(&self) -> Option<&str> {
        let of_assistant = || self.assistant_thread.0.as_ref()?.thread_ts.get();
        let of_messages = || self.messages().find_map(|message| message.thread_ts.get());
        let of_item = || self.item.0.as_ref()?.thread_root();
        let thread = self.thread_ts.get().or_else(of_assistant);
        thread.or_else(of_messages).or_else(of_item)
    }

    /// Returns the first message of the session of a direct message to an agent, where each message
    /// outside threads begins a session. `None` for other events.
    pub fn session_root(&self) -> Option<&str> {
        let is_to_agent = self.kind.get() == Some("message")
            && self.channel_type.get() == Some("im")
            && self.app_context.0.is_some();
        if is_to_agent { self.thread_ts.get().or(self.ts.get()) } else { None }
    }

    /// Returns the number of Tidegate's replies that led to this message, as counted in its
    /// metadata.
    pub fn hops(&self) -> u64 {
        self.metadata.0.as_ref().and_then(|m| m.of_tidegate()?.hops.0).unwrap_or(0)
    }

    /// Returns the message after and before an edit or deletion.
    fn messages(&self) -> impl Iterator<Item = &Item<'_>> {
        self.message.0.iter().chain(&self.previous_message.0)
    }
}

impl Metadata<'_> {
    /// Returns the metadata that Tidegate attached.
    fn of_tidegate(&self) -> Option<&TidegateMetadata<'_>> {
        self.event_payload.0.as_ref().filter(|_| self.event_type.get() == Some("tidegate"))
    }
}

impl Item<'_> {
    /// Returns the agent whose answer this message is, as `<organization>/<agent>`.
    pub fn agent(&self) -> Option<&str> {
        self.metadata.0.as_ref()?.of_tidegate()?.agent.get()
    }

    fn message_ts(&self) -> Option<&str> {
        self.ts.get().or_else(|| self.message.0.as_ref()?.ts.get())
    }

    fn thread_root(&self) -> Option<&str> {
        self.thread_ts.get().or_else(|| self.message.0.as_ref()?.thread_ts.get())
    }
}
