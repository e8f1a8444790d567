//! Buffer of events that an agent sent and that are not stored yet. Pure.

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

/// Bytes in the buffer above which reading from the agent pauses.
const BUFFER_BYTES_MAX: usize = 32 * 1024;
/// Number of characters above which the next write waits less.
const FULL_CHARS: usize = 256;
/// Maximum number of tasks of a run. Further tasks are not shown.
const TASKS_MAX: usize = 50;

/// End of an agent's stream.
#[derive(Debug, Clone)]
pub enum StreamEnd {
    /// The answer is complete. The value is the outcome of the delivery.
    Completed(&'static str),
    /// The stream failed.
    Failed(AgentError),
}

/// Content of an answer that is to be written, with the state of the whole answer.
pub struct AnswerBuffer {
    policy: AnswerPolicy,
    markdown: Markdown,
    chunks: Vec<Chunk>,
    /// False if the buffer is empty or has only an unfinished table.
    is_readable: bool,
    chars: usize,
    bytes: usize,
    /// Bytes of the text of the whole answer.
    text_bytes: i64,
    tasks: HashSet<String>,
    /// True if the next batch begins a segment.
    begins: bool,
    ask: Option<AgentAsk>,
    /// Ids of events after the last stored one, with the value of `text_bytes` after each.
    event_ids: VecDeque<(i64, String)>,
    /// True if there is something to store.
    has_changes: bool,
}

/// Returns the constant for a stored outcome, `completed` for an unknown one.
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

impl AnswerBuffer {
    /// Returns an empty buffer.
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
            has_changes: false,
        }
    }

    /// Continues an earlier attempt with `text_bytes` of stored text, whose last segment has the
    /// text `segment`. With `begins_anew` the answer restarts in another segment.
    pub fn resume(&mut self, begins_anew: bool, text_bytes: i64, segment: &str) {
        (self.begins, self.text_bytes) = (begins_anew, text_bytes);
        if !begins_anew {
            self.markdown.resume(segment);
        }
    }

    /// Returns whether more may be read from the agent.
    pub fn has_capacity(&self) -> bool {
        self.bytes < BUFFER_BYTES_MAX
    }

    /// Adds an event. Returns the end of the stream if the event ends it.
    pub fn add(&mut self, StreamEvent { id, event }: StreamEvent) -> Option<StreamEnd> {
        let end = self.apply(event);
        self.has_changes |= id.is_some() || end.is_some();
        if let Some(id) = id {
            // Of several ids at the same position only the last one is needed.
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
                self.markdown.reset();
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

    /// Ends the answer and discards the content of the buffer.
    pub fn cancel(&mut self, outcome: &'static str) -> StreamEnd {
        self.clear();
        self.has_changes = true;
        StreamEnd::Completed(outcome)
    }

    fn clear(&mut self) {
        self.chunks.clear();
        (self.chars, self.bytes, self.is_readable) = (0, 0, false);
    }

    /// Ends the answer with a message to its reader.
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
        self.has_changes = true;
        push(&mut self.chunks, chunk);
        self.is_readable = match self.chunks.as_slice() {
            [Chunk::MarkdownText { text }] => self.markdown.readable_len(text) > 0,
            _ => true,
        };
    }

    /// Returns the time at which the content is due, `now` if nothing was written before. `None` if
    /// there is nothing to write.
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

    /// Returns whether to write now. After the end of the stream, whatever is not stored is due.
    pub fn is_due(
        &self,
        written_at: Option<Instant>,
        settings: &RunSettings,
        has_ended: bool,
        now: Instant,
    ) -> bool {
        match has_ended {
            true => self.has_changes,
            false => self.due_at(written_at, settings, now).is_some_and(|due| due <= now),
        }
    }

    /// Takes the content as a batch. An unfinished table at its end is left; if the run is
    /// interrupted, the agent resumes before that table.
    pub fn take(&mut self, end: Option<&StreamEnd>) -> Batch {
        let last = self.chunks.len().saturating_sub(1);
        let is_complete = matches!(end, Some(StreamEnd::Completed(_)));
        let (mut chunks, mut kept) = (Vec::new(), String::new());
        for (i, chunk) in std::mem::take(&mut self.chunks).into_iter().enumerate() {
            match chunk {
                Chunk::MarkdownText { mut text } => {
                    if i == last && !is_complete {
                        kept = text.split_off(self.markdown.readable_len(&text));
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
        self.has_changes = false;
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

    fn text(buffer: &mut AnswerBuffer, id: &str, text: &str) {
        let event = AgentEvent::Text(text.to_owned());
        assert!(buffer.add(StreamEvent { id: Some(id.to_owned()), event }).is_none());
    }

    /// The agent resumes after the last event whose text is stored.
    #[test]
    fn keeps_ids_of_tables_that_go_on() {
        let mut buffer = AnswerBuffer::new(AnswerPolicy { broadcasts: false });
        text(&mut buffer, "1", "Look:\n");
        text(&mut buffer, "2", "| a |\n|---|\n");
        let batch = buffer.take(None);
        assert_eq!((batch.last_event_id.as_deref(), batch.chunks.len()), (Some("1"), 1));
        text(&mut buffer, "3", "| 1 |\n");
        let settings = RunSettings {
            segment_period: std::time::Duration::ZERO,
            append_interval: std::time::Duration::ZERO,
            start_interval: std::time::Duration::ZERO,
            edit_interval: std::time::Duration::ZERO,
            max_duration: std::time::Duration::ZERO,
            max_runs_per_agent: 0,
        };
        let now = Instant::now();
        assert!(!buffer.is_due(None, &settings, false, now), "a table that may go on is due");
        text(&mut buffer, "4", "\nDone");
        assert!(buffer.is_due(None, &settings, false, now));
        let batch = buffer.take(None);
        assert_eq!((batch.last_event_id.as_deref(), batch.chunks.len()), (Some("4"), 2));
        text(&mut buffer, "5", "\n| a |\n|---|\n");
        let failed =
            AgentError { kind: FailureKind::Failing, message: String::new(), retry_after: None };
        assert_eq!(buffer.take(Some(&StreamEnd::Failed(failed))).last_event_id, None);
        let batch = buffer.take(Some(&StreamEnd::Completed("completed")));
        assert_eq!((batch.last_event_id.as_deref(), batch.chunks.len()), (Some("5"), 1));
    }
}
