//! What an agent sent and is not stored yet. Pure.

use super::{
    RunSettings, TEXT_BYTES_MAX,
    chunks::{Chunk, plain_text, push},
    writer::Batch,
};
use crate::{
    agent_client::{AgentAsk, AgentError, AgentEvent, AgentFailure, FailureKind, StreamEvent},
    dispatch::agents::AnswerPolicy,
};
use std::collections::HashSet;
use tokio::time::Instant;

/// Bytes above which nothing more is read from the agent.
const PENDING_BYTES_MAX: usize = 32 * 1024;
/// Characters that are sent without a wait for more.
const FULL_CHARS: usize = 256;
/// Maximum number of tasks of a run; further ones are not shown.
const TASKS_MAX: usize = 50;

/// End of an agent's stream.
#[derive(Debug, Clone)]
pub enum StreamEnd {
    /// The answer is complete. The value is the outcome of the delivery.
    Completed(&'static str),
    /// The stream failed.
    Failed(AgentError),
}

pub struct Pending {
    policy: AnswerPolicy,
    chunks: Vec<Chunk>,
    chars: usize,
    bytes: usize,
    /// Bytes of text of the whole answer.
    text_bytes: i64,
    tasks: HashSet<String>,
    begins: bool,
    ask: Option<AgentAsk>,
    last_event_id: Option<String>,
    has_news: bool,
}

/// Returns a stored outcome as a constant.
pub fn outcome_name(stored: &str) -> &'static str {
    match stored {
        "agent_failed" => "agent_failed",
        "run_timed_out" => "run_timed_out",
        "answer_too_long" => "answer_too_long",
        "stopped" => "stopped",
        "message_deleted" => "message_deleted",
        "cancelled" => "cancelled",
        "asked" => "asked",
        "edited" => "edited",
        "interrupted" => "interrupted",
        _ => "completed",
    }
}

impl Pending {
    pub fn new(policy: AnswerPolicy) -> Self {
        Self {
            policy,
            chunks: Vec::new(),
            chars: 0,
            bytes: 0,
            text_bytes: 0,
            tasks: HashSet::new(),
            begins: false,
            ask: None,
            last_event_id: None,
            has_news: false,
        }
    }

    /// Continues an earlier attempt, of which `text_bytes` are stored.
    pub fn resume(&mut self, begins_anew: bool, text_bytes: i64) {
        (self.begins, self.text_bytes) = (begins_anew, text_bytes);
    }

    /// Returns whether more may be read from the agent.
    pub fn has_room(&self) -> bool {
        self.bytes < PENDING_BYTES_MAX
    }

    /// Adds an event. Returns the end of the stream if it is one.
    pub fn add(&mut self, StreamEvent { id, event }: StreamEvent) -> Option<StreamEnd> {
        let end = self.apply(event);
        self.has_news |= id.is_some() || end.is_some();
        self.last_event_id = id.or(self.last_event_id.take());
        end
    }

    fn apply(&mut self, event: AgentEvent) -> Option<StreamEnd> {
        match event {
            AgentEvent::Text(text) => {
                if self.text_bytes + text.len() as i64 > TEXT_BYTES_MAX {
                    return Some(self.end_with("The answer is too long.", "answer_too_long"));
                }
                self.text_bytes += text.len() as i64;
                self.add_text(text);
            }
            AgentEvent::Task(task) => {
                let is_known = self.tasks.contains(&task.id);
                if is_known || self.tasks.len() < TASKS_MAX {
                    self.tasks.insert(task.id.clone());
                    self.add_chunk(Chunk::task(task));
                }
            }
            AgentEvent::Blocks(mut blocks) => {
                self.policy.restrict_blocks(&mut blocks);
                self.add_chunk(Chunk::Blocks { blocks });
            }
            AgentEvent::Reset => {
                self.chunks.clear();
                (self.chars, self.bytes, self.begins) = (0, 0, true);
            }
            AgentEvent::Ask(ask) => {
                self.ask = Some(*ask);
                return Some(StreamEnd::Completed("asked"));
            }
            AgentEvent::Done => return Some(StreamEnd::Completed("completed")),
            AgentEvent::Failed(AgentFailure { code, retry: true, .. }) => {
                return Some(StreamEnd::Failed(AgentError {
                    kind: FailureKind::Failing,
                    message: format!("the agent failed: {code}"),
                    retry_after: None,
                }));
            }
            AgentEvent::Failed(AgentFailure { say, .. }) => {
                let say = say.unwrap_or_else(|| "The agent could not complete the answer.".into());
                return Some(self.end_with(&say, "agent_failed"));
            }
            AgentEvent::Status(_) | AgentEvent::Ignored => {}
        }
        None
    }

    /// Ends the answer and forgets what is not stored.
    pub fn cancel(&mut self, outcome: &'static str) -> StreamEnd {
        self.chunks.clear();
        (self.chars, self.bytes, self.has_news) = (0, 0, true);
        StreamEnd::Completed(outcome)
    }

    /// Ends the answer with words for the person.
    pub fn end_with(&mut self, say: &str, outcome: &'static str) -> StreamEnd {
        let separator = if self.text_bytes > 0 { "\n\n" } else { "" };
        self.add_text(format!("{separator}{say}"));
        StreamEnd::Completed(outcome)
    }

    fn add_text(&mut self, text: String) {
        self.chars += text.chars().count();
        self.add_chunk(Chunk::MarkdownText { text });
    }

    fn add_chunk(&mut self, chunk: Chunk) {
        self.bytes += chunk.size();
        self.has_news = true;
        push(&mut self.chunks, chunk);
    }

    /// Returns the time from which the content is to be written. Without a write before, that is at
    /// once.
    pub fn due_at(
        &self,
        written_at: Option<Instant>,
        settings: &RunSettings,
        now: Instant,
    ) -> Option<Instant> {
        if self.chunks.is_empty() {
            return None;
        }
        let wait = match self.chars >= FULL_CHARS {
            true => settings.append_interval / 4,
            false => settings.append_interval,
        };
        Some(written_at.map_or(now, |at| at + wait))
    }

    pub fn is_due(
        &self,
        written_at: Option<Instant>,
        settings: &RunSettings,
        has_ended: bool,
        now: Instant,
    ) -> bool {
        match has_ended {
            true => self.has_news,
            false => self.due_at(written_at, settings, now).is_some_and(|due| due <= now),
        }
    }

    /// Takes the content, with broadcasts as plain text. `before` is the last character before it.
    pub fn take(&mut self, mut before: Option<char>, end: Option<&StreamEnd>) -> Batch {
        (self.chars, self.bytes, self.has_news) = (0, 0, false);
        let mut chunks = std::mem::take(&mut self.chunks);
        for chunk in &mut chunks {
            if let Chunk::MarkdownText { text } = chunk {
                if !self.policy.broadcasts {
                    *text = plain_text(before, text);
                }
                before = text.chars().last().or(before);
            }
        }
        Batch {
            chunks,
            begins: std::mem::take(&mut self.begins),
            ask: self.ask.take(),
            last_event_id: self.last_event_id.take(),
            ended: match end {
                Some(StreamEnd::Completed(outcome)) => Some(outcome),
                Some(StreamEnd::Failed(_)) | None => None,
            },
        }
    }
}
