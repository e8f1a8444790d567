//! Content of an answer, in the form of Slack's stream chunks.

use crate::{agent_client::TaskUpdate, dispatch::agents::without_broadcasts};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Slack's limit for a task's texts, in characters.
const TASK_CHARS_MAX: usize = 256;

/// Piece of an answer. Its JSON is Slack's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Chunk {
    MarkdownText {
        text: String,
    },
    TaskUpdate {
        id: String,
        title: String,
        status: String,
        /// Slack appends it to the details of the task.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        details: String,
    },
    Blocks {
        blocks: Vec<Value>,
    },
}

impl Chunk {
    pub fn task(task: TaskUpdate) -> Self {
        let short = |text: String| text.chars().take(TASK_CHARS_MAX).collect();
        Self::TaskUpdate {
            id: short(task.id),
            title: short(task.title),
            status: task.status.as_str().to_owned(),
            details: short(task.details),
        }
    }

    /// Returns the text, empty for other chunks.
    pub fn text(&self) -> &str {
        match self {
            Self::MarkdownText { text } => text,
            Self::TaskUpdate { .. } | Self::Blocks { .. } => "",
        }
    }

    /// Returns the size in bytes that counts for Slack's limit of a message.
    pub fn size(&self) -> usize {
        match self {
            Self::MarkdownText { text } => text.len(),
            Self::TaskUpdate { title, details, .. } => title.len() + details.len(),
            Self::Blocks { blocks } => blocks.iter().map(|block| block.to_string().len()).sum(),
        }
    }
}

/// Appends a chunk; text continues the text before it.
pub fn push(chunks: &mut Vec<Chunk>, chunk: Chunk) {
    match (chunks.last_mut(), chunk) {
        (Some(Chunk::MarkdownText { text: before }), Chunk::MarkdownText { text }) => {
            before.push_str(&text);
        }
        (_, chunk) => chunks.push(chunk),
    }
}

/// Returns the text of chunks.
pub fn text_of(chunks: &[Chunk]) -> String {
    chunks.iter().map(Chunk::text).collect()
}

/// Replaces broadcasts in text by plain text, also those that two parts form together. `before` is
/// the last character before the text.
pub fn plain_text(before: Option<char>, text: &str) -> String {
    let plain = without_broadcasts(text);
    match before == Some('<') && plain.starts_with('!') {
        true => format!("\u{200b}{plain}"),
        false => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent_client::TaskStatus;
    use serde_json::json;

    #[test]
    fn has_slacks_form() {
        let task = Chunk::task(TaskUpdate {
            id: "t1".into(),
            title: "x".repeat(300),
            status: TaskStatus::InProgress,
            details: String::new(),
        });
        assert_eq!(
            serde_json::to_value(&task).expect("JSON"),
            json!({
                "type": "task_update", "id": "t1", "title": "x".repeat(256),
                "status": "in_progress",
            })
        );
        let mut chunks = vec![task];
        push(&mut chunks, Chunk::MarkdownText { text: "a".into() });
        push(&mut chunks, Chunk::MarkdownText { text: "b".into() });
        assert_eq!(
            serde_json::to_value(&chunks[1..]).expect("JSON"),
            json!([{ "type": "markdown_text", "text": "ab" }])
        );
    }

    /// However a text is cut, it notifies nobody.
    #[test]
    fn cut_broadcasts_become_plain_text() {
        let text = "a <!channel> b <!subteam^S1|team> <!here|here>";
        for cut in 0..=text.len() {
            let (first, second) = text.split_at(cut);
            let first = plain_text(None, first);
            let joined = plain_text(first.chars().last(), second);
            let joined = first + &joined;
            assert!(!joined.contains("<!"), "{joined}");
        }
    }
}
