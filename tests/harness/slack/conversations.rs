//! What stands in the conversations: every message with its `ts`, thread and metadata.
//!
//! In: what people say (the webhooks that tell of it) and what bots post. Out: history and threads, newest first and oldest
//! first as Slack gives them. A conversation comes to be when something is said in it.

use serde_json::{Value, json};
use std::collections::BTreeMap;

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Its time, which is its name.
    pub ts: String,
    /// Who wrote it.
    pub user: String,
    /// The bot, if it was one.
    pub bot_id: Option<String>,
    /// What a person reads.
    pub text: String,
    /// Block Kit.
    pub blocks: Value,
    /// The message whose thread it is in.
    pub thread_ts: Option<String>,
    /// What its author noted beside it.
    pub metadata: Value,
    /// Whether it was changed.
    pub edited: bool,
}

/// All conversations of all workspaces.
#[derive(Debug, Default)]
pub(super) struct Conversations {
    all: BTreeMap<(String, String), Vec<Message>>,
}

/// Which messages to give.
pub(super) struct Page<'a> {
    pub(super) limit: usize,
    pub(super) cursor: &'a str,
    pub(super) oldest: &'a str,
    pub(super) latest: &'a str,
    pub(super) inclusive: bool,
    pub(super) metadata: bool,
}

impl Conversations {
    pub(super) fn add(&mut self, team: &str, channel: &str, message: Message) {
        self.all.entry((team.to_owned(), channel.to_owned())).or_default().push(message);
    }

    pub(super) fn of(&self, team: &str, channel: &str) -> &[Message] {
        self.all.get(&(team.to_owned(), channel.to_owned())).map_or(&[], Vec::as_slice)
    }

    pub(super) fn find(&mut self, team: &str, channel: &str, ts: &str) -> Option<&mut Message> {
        let messages = self.all.get_mut(&(team.to_owned(), channel.to_owned()))?;
        messages.iter_mut().find(|message| message.ts == ts)
    }

    /// The direct conversation with these users. Named after them, so that its name does not hang on who was first.
    pub(super) fn open(&self, users: &str) -> String {
        let kind = if users.contains(',') { 'G' } else { 'D' };
        format!("{kind}0OPEN{}", users.replace(',', "-"))
    }

    /// `conversations.history`: newest first, and no replies that stand in threads only.
    pub(super) fn history(&self, team: &str, channel: &str, page: &Page) -> Value {
        let roots = |m: &&Message| m.thread_ts.as_ref().is_none_or(|root| *root == m.ts);
        let mut messages: Vec<&Message> = self.of(team, channel).iter().filter(roots).collect();
        messages.sort_by(|one, other| other.ts.cmp(&one.ts));
        paged(&messages, page)
    }

    /// `conversations.replies`: the parent, then its replies, oldest first.
    pub(super) fn replies(
        &self,
        team: &str,
        channel: &str,
        root: &str,
        page: &Page,
    ) -> Option<Value> {
        let thread = |m: &&Message| m.ts == root || m.thread_ts.as_deref() == Some(root);
        let mut messages: Vec<&Message> = self.of(team, channel).iter().filter(thread).collect();
        messages.sort_by(|one, other| one.ts.cmp(&other.ts));
        (!messages.is_empty()).then(|| paged(&messages, page))
    }
}

fn paged(messages: &[&Message], page: &Page) -> Value {
    let bound = |ts: &str, at: &str| (page.inclusive && ts == at) || at.is_empty();
    let wanted: Vec<&&Message> = messages
        .iter()
        .filter(|m| bound(&m.ts, page.oldest) || *m.ts > *page.oldest)
        .filter(|m| bound(&m.ts, page.latest) || *m.ts < *page.latest)
        .collect();
    let from: usize = page.cursor.parse().unwrap_or_default();
    let until = (from + page.limit).min(wanted.len());
    let more = until < wanted.len();
    let shown = wanted.get(from..until).unwrap_or_default();
    let shown: Vec<Value> = shown.iter().map(|message| message.json(page.metadata)).collect();
    let next = if more { until.to_string() } else { String::new() };
    json!({
        "ok": true, "messages": shown, "has_more": more,
        "response_metadata": { "next_cursor": next },
    })
}

impl Message {
    /// As Slack gives it.
    pub(super) fn json(&self, with_metadata: bool) -> Value {
        let mut message =
            json!({ "type": "message", "user": self.user, "text": self.text, "ts": self.ts });
        let mut set = |name: &str, value: Value| {
            if !value.is_null() {
                message[name] = value;
            }
        };
        set("bot_id", self.bot_id.clone().into());
        set("blocks", self.blocks.clone());
        set("thread_ts", self.thread_ts.clone().into());
        if with_metadata {
            set("metadata", self.metadata.clone());
        }
        if self.edited {
            set("edited", json!({ "user": self.user, "ts": self.ts }));
        }
        message
    }
}
