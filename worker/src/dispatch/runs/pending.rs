//! What an agent sent and is not stored yet. Pure.

use super::{RunSettings, TEXT_BYTES_MAX, writer::Batch};
use crate::{
    agent_client::{AgentAsk, AgentError, AgentEvent, AgentFailure, FailureKind, StreamEvent},
    dispatch::{
        agents::AnswerPolicy,
        content::{Chunk, Markdown, push},
    },
};
use std::collections::{HashSet, VecDeque};
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
    markdown: Markdown,
    chunks: Vec<Chunk>,
    /// False if all content is text of a table that may go on.
    is_readable: bool,
    chars: usize,
    bytes: usize,
    /// Bytes of text of the whole answer.
    text_bytes: i64,
    tasks: HashSet<String>,
    begins: bool,
    ask: Option<AgentAsk>,
    /// Ids of events since the last one that is stored, with the text up to them.
    event_ids: VecDeque<(i64, String)>,
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
            markdown: Markdown::new(policy.broadcasts),
            chunks: Vec::new(),
            is_readable: false,
            chars: 0,
            bytes: 0,
            text_bytes: 0,
            tasks: HashSet::new(),
            begins: false,
            ask: None,
            event_ids: VecDeque::new(),
            has_news: false,
        }
    }

    /// Continues an earlier attempt, of which `text_bytes` are stored, in the segment with this
    /// text.
    pub fn resume(&mut self, begins_anew: bool, text_bytes: i64, segment: &str) {
        (self.begins, self.text_bytes) = (begins_anew, text_bytes);
        if !begins_anew {
            self.markdown.resume(segment);
        }
    }

    /// Returns whether more may be read from the agent.
    pub fn has_room(&self) -> bool {
        self.bytes < PENDING_BYTES_MAX
    }

    /// Adds an event. Returns the end of the stream if it is one.
    pub fn add(&mut self, StreamEvent { id, event }: StreamEvent) -> Option<StreamEnd> {
        let end = self.apply(event);
        self.has_news |= id.is_some() || end.is_some();
        if let Some(id) = id {
            // The last one of all with the same text counts.
            self.event_ids.pop_back_if(|(text_bytes, _)| *text_bytes == self.text_bytes);
            self.event_ids.push_back((self.text_bytes, id));
        }
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
                self.clear();
                self.begins = true;
                self.markdown.begin_anew();
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
            AgentEvent::Status(_)
            | AgentEvent::Title(_)
            | AgentEvent::Prompts(_)
            | AgentEvent::Ignored => {}
        }
        None
    }

    /// Ends the answer and forgets what is not stored.
    pub fn cancel(&mut self, outcome: &'static str) -> StreamEnd {
        self.clear();
        self.has_news = true;
        StreamEnd::Completed(outcome)
    }

    fn clear(&mut self) {
        self.chunks.clear();
        (self.chars, self.bytes, self.is_readable) = (0, 0, false);
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
        self.is_readable = match self.chunks.as_slice() {
            [Chunk::MarkdownText { text }] => self.markdown.readable(text) > 0,
            _ => true,
        };
    }

    /// Returns the time from which the content is to be written. Without a write before, that is at
    /// once.
    pub fn due_at(
        &self,
        written_at: Option<Instant>,
        settings: &RunSettings,
        now: Instant,
    ) -> Option<Instant> {
        if !self.is_readable {
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

    /// Takes the content. A table at its end is left if more of it may come: then the agent resumes
    /// before it.
    pub fn take(&mut self, end: Option<&StreamEnd>) -> Batch {
        let last = self.chunks.len().saturating_sub(1);
        let is_complete = matches!(end, Some(StreamEnd::Completed(_)));
        let (mut chunks, mut kept) = (Vec::new(), String::new());
        for (i, chunk) in std::mem::take(&mut self.chunks).into_iter().enumerate() {
            match chunk {
                Chunk::MarkdownText { mut text } => {
                    if i == last && !is_complete {
                        kept = text.split_off(self.markdown.readable(&text));
                    }
                    let read = self.markdown.read(&text);
                    read.into_iter().for_each(|chunk| push(&mut chunks, chunk));
                }
                other => chunks.push(other),
            }
        }
        let taken_bytes = self.text_bytes - kept.len() as i64;
        let mut last_event_id = None;
        while let Some((_, id)) = self.event_ids.pop_front_if(|(bytes, _)| *bytes <= taken_bytes) {
            last_event_id = Some(id);
        }
        self.clear();
        if !kept.is_empty() {
            (self.chars, self.bytes) = (kept.chars().count(), kept.len());
            self.chunks.push(Chunk::MarkdownText { text: kept });
        }
        self.has_news = false;
        Batch {
            chunks,
            begins: std::mem::take(&mut self.begins),
            ask: self.ask.take(),
            last_event_id,
            ended: match end {
                Some(StreamEnd::Completed(outcome)) => Some(outcome),
                Some(StreamEnd::Failed(_)) | None => None,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(pending: &mut Pending, id: &str, text: &str) {
        let event = AgentEvent::Text(text.to_owned());
        assert!(pending.add(StreamEvent { id: Some(id.to_owned()), event }).is_none());
    }

    /// The agent resumes after the last event whose text is stored.
    #[test]
    fn keeps_ids_of_tables_that_go_on() {
        let mut pending = Pending::new(AnswerPolicy { broadcasts: false });
        text(&mut pending, "1", "Look:\n");
        text(&mut pending, "2", "| a |\n|---|\n");
        let batch = pending.take(None);
        assert_eq!((batch.last_event_id.as_deref(), batch.chunks.len()), (Some("1"), 1));
        text(&mut pending, "3", "| 1 |\n");
        let settings = RunSettings {
            segment_period: std::time::Duration::ZERO,
            append_interval: std::time::Duration::ZERO,
            start_interval: std::time::Duration::ZERO,
            edit_interval: std::time::Duration::ZERO,
            max_duration: std::time::Duration::ZERO,
            max_runs_per_agent: 0,
        };
        let now = Instant::now();
        assert!(!pending.is_due(None, &settings, false, now), "a table that may go on is due");
        text(&mut pending, "4", "\nDone");
        assert!(pending.is_due(None, &settings, false, now));
        let batch = pending.take(None);
        assert_eq!((batch.last_event_id.as_deref(), batch.chunks.len()), (Some("4"), 2));
        text(&mut pending, "5", "\n| a |\n|---|\n");
        let failed =
            AgentError { kind: FailureKind::Failing, message: String::new(), retry_after: None };
        assert_eq!(pending.take(Some(&StreamEnd::Failed(failed))).last_event_id, None);
        let batch = pending.take(Some(&StreamEnd::Completed("completed")));
        assert_eq!((batch.last_event_id.as_deref(), batch.chunks.len()), (Some("5"), 1));
    }
}
