//! Messages of all conversations, with `ts`, thread and metadata.
//!
//! Messages come from people (by the webhooks that report them) and from bots. As in Slack, history
//! is newest first, threads are oldest first. A conversation exists from its first message on.

use super::streams::Stream;
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// A message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Time stamp, which identifies the message.
    pub ts: String,
    /// Author.
    pub user: String,
    /// Bot, if the author is one.
    pub bot_id: Option<String>,
    /// Text.
    pub text: String,
    /// Blocks of Block Kit.
    pub blocks: Value,
    /// Parent message of the thread.
    pub thread_ts: Option<String>,
    /// Metadata of the author.
    pub metadata: Value,
    /// True if the message was edited.
    pub edited: bool,
    /// Stream, if the message is streamed.
    pub stream: Option<Stream>,
}

/// All conversations of all workspaces.
#[derive(Debug, Default)]
pub(super) struct Conversations {
    all: BTreeMap<(String, String), Vec<Message>>,
    deleted: BTreeSet<(String, String, String)>,
}

/// Selection of messages.
pub(super) struct Page<'a> {
    pub(super) limit: usize,
    pub(super) cursor: &'a str,
    pub(super) oldest: &'a str,
    pub(super) latest: &'a str,
    pub(super) inclusive: bool,
    pub(super) metadata: bool,
}

impl Conversations {
    /// Deletes a message and returns true if it existed. Later messages in its thread are posted
    /// outside the thread.
    pub(super) fn delete(&mut self, team: &str, channel: &str, ts: &str) -> bool {
        let Some(all) = self.all.get_mut(&(team.to_owned(), channel.to_owned())) else {
            return false;
        };
        let before = all.len();
        all.retain(|message| message.ts != ts);
        let existed = all.len() < before;
        if existed {
            self.deleted.insert((team.to_owned(), channel.to_owned(), ts.to_owned()));
        }
        existed
    }

    pub(super) fn is_deleted(&self, team: &str, channel: &str, ts: &str) -> bool {
        self.deleted.contains(&(team.to_owned(), channel.to_owned(), ts.to_owned()))
    }

    pub(super) fn add(&mut self, team: &str, channel: &str, message: Message) {
        self.all.entry((team.to_owned(), channel.to_owned())).or_default().push(message);
    }

    pub(super) fn of(&self, team: &str, channel: &str) -> &[Message] {
        self.all.get(&(team.to_owned(), channel.to_owned())).map_or(&[], Vec::as_slice)
    }

    pub(super) fn all_of(&mut self, team: &str, channel: &str) -> &mut [Message] {
        self.all.entry((team.to_owned(), channel.to_owned())).or_default()
    }

    pub(super) fn find(&mut self, team: &str, channel: &str, ts: &str) -> Option<&mut Message> {
        let messages = self.all.get_mut(&(team.to_owned(), channel.to_owned()))?;
        messages.iter_mut().find(|message| message.ts == ts)
    }

    /// Returns the direct message channel of some users. Its id depends on the users only.
    pub(super) fn open(&self, users: &str) -> String {
        let kind = if users.contains(',') { 'G' } else { 'D' };
        format!("{kind}0OPEN{}", users.replace(',', "-"))
    }

    /// Returns `conversations.history`: newest first, without replies in threads.
    pub(super) fn history(&self, team: &str, channel: &str, page: &Page) -> Value {
        let roots = |m: &&Message| m.thread_ts.as_ref().is_none_or(|root| *root == m.ts);
        let mut messages: Vec<&Message> = self.of(team, channel).iter().filter(roots).collect();
        messages.sort_by(|one, other| other.ts.cmp(&one.ts));
        paged(&messages, page)
    }

    /// Returns `conversations.replies`: the parent, then its replies, oldest first.
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
    pub(super) fn append_blocks(&mut self, blocks: &[Value]) {
        match &mut self.blocks {
            Value::Array(all) => all.extend(blocks.iter().cloned()),
            other => *other = blocks.into(),
        }
    }

    /// Returns the message in Slack's format.
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
        if let Some(stream) = &self.stream {
            set("streaming_state", stream.state.as_str().into());
        }
        if self.edited {
            set("edited", json!({ "user": self.user, "ts": self.ts }));
        }
        message
    }
}
