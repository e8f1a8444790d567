//! Renders a segment as one message: what a stream shows, where streams are refused or have ended.
//! Pure.

use super::chunks::{Chunk, text_of};
use crate::slack::postable;
use serde_json::{Value, json};

/// Maximum characters of the text of notifications.
const TEXT_CHARS_MAX: usize = 300;
/// Slack's limit of blocks in a message.
const BLOCKS_MAX: usize = 50;

/// Returns the body of a message with the content of a segment. Tasks become lines of context.
pub fn render(content: &[Chunk], closing: &str, mark: Option<&str>) -> Value {
    let mut blocks: Vec<Value> = Vec::new();
    let mut tasks: Vec<(&str, usize)> = Vec::new();
    for chunk in content {
        match chunk {
            Chunk::MarkdownText { text } => match blocks.last_mut() {
                Some(last) if last["type"] == "markdown" => {
                    let joined = format!("{}{text}", last["text"].as_str().unwrap_or_default());
                    last["text"] = joined.into();
                }
                _ => blocks.push(json!({ "type": "markdown", "text": text })),
            },
            Chunk::Blocks { blocks: more } => blocks.extend(more.iter().cloned()),
            Chunk::TaskUpdate { id, title, status, .. } => {
                let line = json!({
                    "type": "context",
                    "elements": [{ "type": "plain_text", "text": task_line(title, status) }],
                });
                match tasks.iter().find(|(known, _)| known == id) {
                    Some((_, at)) => blocks[*at] = line,
                    None => {
                        tasks.push((id, blocks.len()));
                        blocks.push(line);
                    }
                }
            }
        }
    }
    if !closing.is_empty()
        && let Some(last) = blocks.iter_mut().rev().find(|block| block["type"] == "markdown")
    {
        last["text"] = format!("{}{closing}", last["text"].as_str().unwrap_or_default()).into();
    }
    blocks.truncate(BLOCKS_MAX);
    let text: String = text_of(content).chars().take(TEXT_CHARS_MAX).collect();
    let text = if text.trim().is_empty() { "…".to_owned() } else { text };
    let message = json!({
        "text": text, "blocks": blocks, "unfurl_links": false, "unfurl_media": false,
    });
    postable(&message, mark)
}

fn task_line(title: &str, status: &str) -> String {
    let sign = match status {
        "complete" => "✓",
        "error" => "✗",
        _ => "…",
    };
    let title = if title.is_empty() { "Step" } else { title };
    format!("{sign} {title}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(id: &str, status: &str) -> Chunk {
        let (id, title, status) = (id.to_owned(), "Search".to_owned(), status.to_owned());
        Chunk::TaskUpdate { id, title, status, details: String::new() }
    }

    #[test]
    fn shows_text_and_tasks() {
        let text = |text: &str| Chunk::MarkdownText { text: text.into() };
        let content = [task("a", "in_progress"), text("```\n1"), text("2"), task("a", "complete")];
        let message = render(&content, "\n```", Some("m"));
        let line = json!({ "type": "plain_text", "text": "✓ Search" });
        assert_eq!(
            message["blocks"],
            json!([
                { "type": "context", "elements": [line] },
                { "type": "markdown", "text": "```\n12\n```" },
            ])
        );
        assert_eq!(message["metadata"]["event_payload"]["id"], "m");
        assert_eq!(render(&[task("a", "error")], "", None)["text"], "…");
    }
}
