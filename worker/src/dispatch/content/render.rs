//! Rendering of content as messages: JSON answers in Markdown, and segments whose stream has ended
//! or was refused. Pure.

use super::{
    chunks::{Chunk, text_of},
    markdown::Markdown,
    segments::{SegmentPlan, closing_of},
};
use crate::slack::postable;
use serde_json::{Value, json};

/// Maximum characters of a message's text, which Slack shows in notifications.
const TEXT_CHARS_MAX: usize = 300;
/// Slack's limit of blocks in a message.
const BLOCKS_MAX: usize = 50;

/// Returns the body of a message with the content of a segment. Tasks become context blocks.
/// `closing` completes the last text; `mark` is the id in the message's metadata.
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
    // Slack refuses empty texts.
    blocks.retain(|block| {
        block["type"] != "markdown" || block["text"].as_str().is_some_and(has_content)
    });
    blocks.truncate(BLOCKS_MAX);
    let text: String = text_of(content).chars().take(TEXT_CHARS_MAX).collect();
    let text = if text.trim().is_empty() { "…".to_owned() } else { text };
    let mut message = json!({ "text": text, "unfurl_links": false, "unfurl_media": false });
    if !blocks.is_empty() {
        message["blocks"] = blocks.into();
    }
    postable(&message, mark)
}

/// Returns the bodies of the messages of an answer: its Markdown, then its blocks. Each has its
/// Markdown as text, too, which is sent if Slack refuses the blocks.
pub fn messages(markdown: &str, blocks: &[Value], allows_broadcasts: bool) -> Vec<Value> {
    let mut chunks = Markdown::new(allows_broadcasts).read(markdown);
    if !blocks.is_empty() {
        chunks.push(Chunk::Blocks { blocks: blocks.to_vec() });
    }
    let parts = SegmentPlan::new().add(chunks);
    let has_content = |chunks: &[Chunk]| {
        chunks
            .iter()
            .any(|chunk| !matches!(chunk, Chunk::MarkdownText { text } if !has_content(text)))
    };
    let message = |content: &[Chunk]| {
        let closing = closing_of(content);
        let mut message = render(content, &closing, None);
        let reduced: Vec<Chunk> = content.iter().filter_map(Chunk::reduced).collect();
        let text = text_of(&reduced) + &closing;
        if has_content(&[Chunk::MarkdownText { text: text.clone() }]) {
            message["text"] = text.into();
        }
        message
    };
    let parts = parts.iter().filter(|part| has_content(&part.chunks));
    parts.map(|part| message(&part.chunks)).collect()
}

/// Returns whether a text has visible characters, as Slack requires.
fn has_content(text: &str) -> bool {
    text.chars().any(|c| !c.is_whitespace() && c != '\u{200b}')
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

    #[test]
    fn cuts_answer_into_messages() {
        let table = "| a |\n|---|\n| 1 |\n";
        let code = format!("```rust\n{}```\n", "let x = 1;\n".repeat(1_000));
        let answer = format!("First\n{table}\nSecond\n{table}\n{code}");
        let block = json!({ "type": "divider" });
        let messages = messages(&answer, std::slice::from_ref(&block), false);
        let types = |message: &Value| -> Vec<String> {
            let blocks = message["blocks"].as_array().into_iter().flatten();
            blocks.map(|block| block["type"].as_str().unwrap_or_default().to_owned()).collect()
        };
        let shapes: Vec<Vec<String>> = messages.iter().map(types).collect();
        assert_eq!(
            shapes,
            [
                vec!["markdown", "table", "markdown"],
                vec!["table", "markdown"],
                vec!["markdown", "divider"],
            ]
        );
        assert!(messages[0]["text"].as_str().is_some_and(|text| text.contains("a\n1\n")));
        let ends: Vec<bool> = messages[1..]
            .iter()
            .map(|m| m["text"].as_str().is_some_and(|text| text.trim_end().ends_with("```")))
            .collect();
        assert_eq!(ends, [true, true]);
        assert!(super::messages(" \n", &[], false).is_empty());
    }
}
