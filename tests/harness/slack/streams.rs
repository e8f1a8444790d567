//! Streamed messages: `chat.startStream`, `chat.appendStream` and `chat.stopStream`, with Slack's
//! limits and errors.
//!
//! Slack documents neither the lifetime of a stream nor the maximum size of its message. Both are
//! settings, with the values that app developers report.

use super::{
    api::ApiError,
    blocks,
    conversations::{Conversations, Message},
};
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};

/// Maximum length of a text, in characters.
const MARKDOWN_MAX: usize = 12_000;
/// Maximum length of a task's texts, in characters.
const TASK_MAX: usize = 256;
const BLOCKS_MAX: usize = 50;
const TASK_STATUSES: [&str; 4] = ["pending", "in_progress", "complete", "error"];

/// Settings of streams.
#[derive(Debug, Clone)]
pub struct StreamSettings {
    /// Time after which a stream ends, even while text is appended.
    pub lifetime: Duration,
    /// Maximum bytes of a message's text.
    pub bytes_max: usize,
    /// Error of `chat.startStream`, for workspaces without streams.
    pub refuses: Option<String>,
}

impl Default for StreamSettings {
    fn default() -> Self {
        Self { lifetime: Duration::from_secs(300), bytes_max: 10_600, refuses: None }
    }
}

/// State of a streamed message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamingState {
    /// Open.
    InProgress,
    /// Stopped by the app, or updated after its lifetime.
    Completed,
    /// Ended by its lifetime. Slack shows an error until the message is updated.
    Errored,
    /// Stopped by a person.
    StoppedByUser,
}

impl StreamingState {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::InProgress => "in_progress",
            Self::Completed | Self::StoppedByUser => "completed",
            Self::Errored => "errored",
        }
    }
}

/// Stream of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stream {
    /// Start.
    pub started: SystemTime,
    /// State.
    pub state: StreamingState,
    /// True if it was started with chunks, false if with text.
    pub has_chunks: bool,
    /// Tasks by id: title, status, details.
    pub tasks: Vec<(String, String, String, String)>,
}

impl Stream {
    /// Ends the stream if its lifetime is over.
    fn expire(&mut self, settings: &StreamSettings, now: SystemTime) {
        if self.state == StreamingState::InProgress && self.started + settings.lifetime <= now {
            self.state = StreamingState::Errored;
        }
    }
}

/// Adds a message of the caller with an open stream to a conversation.
pub(super) fn start(
    conversations: &mut Conversations,
    settings: &StreamSettings,
    (team, channel): (&str, &str),
    args: &Value,
    mut message: Message,
    now: SystemTime,
) -> Result<Value, ApiError> {
    if let Some(error) = &settings.refuses {
        return Err(error.as_str().into());
    }
    let root = message.thread_ts.clone().unwrap_or_default();
    if conversations.find(team, channel, &root).is_none() {
        return Err("invalid_thread_ts".into());
    }
    if !channel.starts_with('D') {
        for (name, error) in [
            ("recipient_user_id", "missing_recipient_user_id"),
            ("recipient_team_id", "missing_recipient_team_id"),
        ] {
            if args[name].as_str().is_none_or(str::is_empty) {
                return Err(error.into());
            }
        }
    }
    let (state, has_chunks) = (StreamingState::InProgress, !args["chunks"].is_null());
    message.stream = Some(Stream { started: now, state, has_chunks, tasks: Vec::new() });
    add(&mut message, settings, args)?;
    let answer = json!({ "ok": true, "channel": channel, "ts": message.ts });
    conversations.add(team, channel, message);
    Ok(answer)
}

/// Appends to a stream.
pub(super) fn append(
    conversations: &mut Conversations,
    settings: &StreamSettings,
    (team, channel): (&str, &str),
    args: &Value,
    now: SystemTime,
) -> Result<Value, ApiError> {
    let message = open(conversations, settings, (team, channel), args, now)?;
    if args["chunks"].is_null() && args["markdown_text"].is_null() {
        return Err("no_text".into());
    }
    add(message, settings, args)?;
    Ok(json!({ "ok": true, "channel": channel, "ts": message.ts }))
}

/// Stops a stream.
pub(super) fn stop(
    conversations: &mut Conversations,
    settings: &StreamSettings,
    (team, channel): (&str, &str),
    args: &Value,
    now: SystemTime,
) -> Result<Value, ApiError> {
    let message = open(conversations, settings, (team, channel), args, now)?;
    add(message, settings, args)?;
    if let Some(blocks) = args["blocks"].as_array() {
        if blocks.len() > BLOCKS_MAX {
            return Err("msg_blocks_too_many".into());
        }
        message.append_blocks(blocks);
    }
    if !args["metadata"].is_null() {
        message.metadata = args["metadata"].clone();
    }
    if let Some(stream) = &mut message.stream {
        stream.state = StreamingState::Completed;
    }
    Ok(json!({
        "ok": true, "channel": channel, "ts": message.ts, "message": message.json(true),
    }))
}

/// Checks that a message can be updated, and completes a stream that has expired.
pub(super) fn before_update(
    message: &mut Message,
    settings: &StreamSettings,
    now: SystemTime,
) -> Result<(), ApiError> {
    let Some(stream) = &mut message.stream else { return Ok(()) };
    stream.expire(settings, now);
    match stream.state {
        StreamingState::InProgress => Err("streaming_state_conflict".into()),
        StreamingState::Errored => {
            stream.state = StreamingState::Completed;
            Ok(())
        }
        StreamingState::Completed | StreamingState::StoppedByUser => Ok(()),
    }
}

fn open<'a>(
    conversations: &'a mut Conversations,
    settings: &StreamSettings,
    (team, channel): (&str, &str),
    args: &Value,
    now: SystemTime,
) -> Result<&'a mut Message, ApiError> {
    let ts = args["ts"].as_str().unwrap_or_default();
    let message = conversations.find(team, channel, ts).ok_or("message_not_found")?;
    let stream = message.stream.as_mut().ok_or("message_not_in_streaming_state")?;
    stream.expire(settings, now);
    let is_mismatch = (stream.has_chunks && !args["markdown_text"].is_null())
        || (!stream.has_chunks && !args["chunks"].is_null());
    match stream.state {
        StreamingState::InProgress if is_mismatch => Err("streaming_mode_mismatch".into()),
        StreamingState::InProgress => Ok(message),
        StreamingState::StoppedByUser => Err("stopped_by_user".into()),
        StreamingState::Completed | StreamingState::Errored => {
            Err("message_not_in_streaming_state".into())
        }
    }
}

/// Adds the content of a call to a message, completely or not at all.
fn add(message: &mut Message, settings: &StreamSettings, args: &Value) -> Result<(), ApiError> {
    let (text, chunks) = (&args["markdown_text"], &args["chunks"]);
    if !text.is_null() && !chunks.is_null() {
        return Err("cannot_provide_both_markdown_text_and_chunks".into());
    }
    let mut new = message.clone();
    if let Some(text) = text.as_str() {
        add_text(&mut new, text)?;
    }
    if !chunks.is_null() {
        for chunk in chunks.as_array().ok_or("invalid_chunks")? {
            add_chunk(&mut new, chunk)?;
        }
    }
    if new.text.len() > settings.bytes_max {
        return Err("msg_too_long".into());
    }
    blocks::check(&new.blocks)?;
    *message = new;
    Ok(())
}

fn add_text(message: &mut Message, text: &str) -> Result<(), ApiError> {
    if text.chars().count() > MARKDOWN_MAX {
        return Err("msg_too_long".into());
    }
    message.text.push_str(text);
    Ok(())
}

fn add_chunk(message: &mut Message, chunk: &Value) -> Result<(), ApiError> {
    let text = |name: &str| chunk[name].as_str().unwrap_or_default();
    let short = |name: &str| text(name).chars().count() <= TASK_MAX;
    match chunk["type"].as_str() {
        Some("markdown_text") if chunk["text"].is_string() => add_text(message, text("text")),
        Some("task_update") => {
            let is_known = TASK_STATUSES.contains(&text("status"));
            if text("id").is_empty() || !is_known || !short("title") || !short("details") {
                return Err("invalid_chunks".into());
            }
            let stream = message.stream.as_mut().ok_or("invalid_chunks")?;
            let (id, title, status) = (text("id"), text("title"), text("status"));
            match stream.tasks.iter_mut().find(|task| task.0 == id) {
                Some(task) => {
                    (task.1, task.2) = (title.to_owned(), status.to_owned());
                    task.3.push_str(text("details"));
                }
                None => stream.tasks.push((
                    id.to_owned(),
                    title.to_owned(),
                    status.to_owned(),
                    text("details").to_owned(),
                )),
            }
            Ok(())
        }
        Some("plan_update") if short("title") => Ok(()),
        Some("blocks") => {
            let blocks = chunk["blocks"].as_array().ok_or("invalid_chunks")?;
            if blocks.len() > BLOCKS_MAX {
                return Err("msg_blocks_too_many".into());
            }
            message.append_blocks(blocks);
            Ok(())
        }
        _ => Err("invalid_chunks".into()),
    }
}

/// Stops the open streams of a thread, as a person does. Returns the `ts` of their messages.
pub(super) fn stop_by_user(messages: &mut [Message], thread_ts: &str) -> Vec<String> {
    let mut stopped = Vec::new();
    for message in messages.iter_mut().filter(|m| m.thread_ts.as_deref() == Some(thread_ts)) {
        if let Some(stream) = &mut message.stream
            && stream.state == StreamingState::InProgress
        {
            stream.state = StreamingState::StoppedByUser;
            stopped.push(message.ts.clone());
        }
    }
    stopped
}
