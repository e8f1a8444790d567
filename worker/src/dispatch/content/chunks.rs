//! Chunks: content of an answer in the JSON format of Slack's streams.

use super::{
    broadcasts::plain_markdown,
    tables::{code_block, text_of_table},
};
use crate::agent_client::TaskUpdate;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Slack's limit for a task's texts, in characters.
const TASK_CHARS_MAX: usize = 256;

/// Piece of an answer. Serializes to a chunk of `chat.appendStream`.
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
        /// Text that Slack appends to the details of the task.
        #[serde(default, skip_serializing_if = "String::is_empty")]
        details: String,
    },
    Blocks {
        blocks: Vec<Value>,
    },
}

impl Chunk {
    /// Returns the chunk of a task, with its texts cut to Slack's limit and without broadcasts.
    pub fn task(task: TaskUpdate) -> Self {
        let short = |text: &str| text.chars().take(TASK_CHARS_MAX).collect();
        Self::TaskUpdate {
            id: short(&task.id),
            title: short(&plain_markdown(&task.title)),
            status: task.status.as_str().to_owned(),
            details: short(&plain_markdown(&task.details)),
        }
    }

    /// Returns the text of a text chunk, otherwise an empty one.
    pub fn text(&self) -> &str {
        match self {
            Self::MarkdownText { text } => text,
            Self::TaskUpdate { .. } | Self::Blocks { .. } => "",
        }
    }

    /// Returns whether a block of the chunk is a table.
    pub fn has_table(&self) -> bool {
        matches!(self, Self::Blocks { blocks } if blocks.iter().any(is_table))
    }

    /// Returns the chunk as text only, for content whose format Slack refused: tables become their
    /// cells, other blocks and tasks are dropped.
    pub fn reduced(&self) -> Option<Self> {
        let text = match self {
            Self::MarkdownText { text } => text.clone(),
            Self::TaskUpdate { .. } => String::new(),
            Self::Blocks { blocks } => blocks
                .iter()
                .map(text_of_table)
                .filter(|text| !text.is_empty())
                .map(|text| format!("\n{}", code_block(&text)))
                .collect(),
        };
        (!text.is_empty()).then_some(Self::MarkdownText { text })
    }

    /// Returns the size in bytes, compared with the maximum size of a segment.
    pub fn size(&self) -> usize {
        match self {
            Self::MarkdownText { text } => text.len(),
            Self::TaskUpdate { title, details, .. } => title.len() + details.len(),
            Self::Blocks { blocks } => blocks.iter().map(|block| block.to_string().len()).sum(),
        }
    }
}

/// Returns whether a block is a table.
pub fn is_table(block: &Value) -> bool {
    block["type"] == "table"
}

/// Appends a chunk. Joins a text with the text before it.
pub fn push(chunks: &mut Vec<Chunk>, chunk: Chunk) {
    match (chunks.last_mut(), chunk) {
        (Some(Chunk::MarkdownText { text: before }), Chunk::MarkdownText { text }) => {
            before.push_str(&text);
        }
        (_, chunk) => chunks.push(chunk),
    }
}

/// Returns the joined text of chunks.
pub fn text_of(chunks: &[Chunk]) -> String {
    chunks.iter().map(Chunk::text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent_client::TaskStatus;
    use serde_json::json;

    #[test]
    fn serializes_for_slack() {
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
        let blocks =
            vec![json!({ "type": "table", "rows": [[{ "type": "raw_text", "text": "a" }]] })];
        let table = Chunk::Blocks { blocks };
        let text = Chunk::MarkdownText { text: "\n```\na\n```\n".into() };
        assert_eq!((table.reduced(), task.reduced()), (Some(text), None));
        let mut chunks = vec![task];
        push(&mut chunks, Chunk::MarkdownText { text: "a".into() });
        push(&mut chunks, Chunk::MarkdownText { text: "b".into() });
        assert_eq!(
            serde_json::to_value(&chunks[1..]).expect("JSON"),
            json!([{ "type": "markdown_text", "text": "ab" }])
        );
    }
}
