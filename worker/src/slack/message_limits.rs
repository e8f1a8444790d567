//! Slack's size limits of messages. A message that exceeds one is shortened, since Slack would
//! refuse it as a whole.

use serde_json::{Value, json};

/// Slack's limit for the text of a message, in characters.
pub const TEXT_CHARS_MAX: usize = 40_000;
/// Slack's limit of blocks in a message.
const BLOCKS_MAX: usize = 50;
const SECTION_CHARS_MAX: usize = 3_000;
const FIELD_CHARS_MAX: usize = 2_000;
const HEADER_CHARS_MAX: usize = 150;

/// Shortens a message to Slack's limits. An ellipsis or a note marks what is missing.
pub fn fit(message: &mut Value) {
    shorten(message.get_mut("text"), TEXT_CHARS_MAX);
    let Some(blocks) = message.get_mut("blocks").and_then(Value::as_array_mut) else { return };
    if blocks.len() > BLOCKS_MAX {
        blocks.truncate(BLOCKS_MAX - 1);
        let note = json!({ "type": "plain_text", "text": "This message was shortened." });
        blocks.push(json!({ "type": "context", "elements": [note] }));
    }
    for block in blocks {
        let max = match block["type"].as_str() {
            Some("section") => SECTION_CHARS_MAX,
            Some("header") => HEADER_CHARS_MAX,
            _ => continue,
        };
        shorten(block.pointer_mut("/text/text"), max);
        for field in block.get_mut("fields").and_then(Value::as_array_mut).into_iter().flatten() {
            shorten(field.get_mut("text"), FIELD_CHARS_MAX);
        }
    }
}

fn shorten(text: Option<&mut Value>, max: usize) {
    if let Some(Value::String(text)) = text
        && let Some((end, _)) = text.char_indices().nth(max - 1)
        && text[end..].chars().nth(1).is_some()
    {
        text.truncate(end);
        text.push('…');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shortens_above_limits() {
        let message = |text: usize, section: usize, field: usize, blocks: usize| {
            let section = json!({
                "type": "section",
                "text": { "type": "mrkdwn", "text": "é".repeat(section) },
                "fields": [{ "type": "mrkdwn", "text": "x".repeat(field) }],
            });
            json!({ "text": "é".repeat(text), "blocks": vec![section; blocks] })
        };
        let full = message(TEXT_CHARS_MAX, SECTION_CHARS_MAX, FIELD_CHARS_MAX, BLOCKS_MAX);
        let mut same = full.clone();
        fit(&mut same);
        assert_eq!(same, full);
        let mut long =
            message(TEXT_CHARS_MAX + 1, SECTION_CHARS_MAX + 1, FIELD_CHARS_MAX + 1, BLOCKS_MAX + 1);
        fit(&mut long);
        let chars = |at: &str| long.pointer(at).and_then(Value::as_str).map(|t| t.chars().count());
        assert_eq!(chars("/text"), Some(TEXT_CHARS_MAX));
        assert_eq!(chars("/blocks/0/text/text"), Some(SECTION_CHARS_MAX));
        assert_eq!(chars("/blocks/0/fields/0/text"), Some(FIELD_CHARS_MAX));
        assert!(long["text"].as_str().is_some_and(|text| text.ends_with("é…")));
        assert_eq!(long["blocks"].as_array().map(Vec::len), Some(BLOCKS_MAX));
        assert_eq!(long["blocks"][49]["type"], "context");
        let mut odd = json!({ "text": 7, "blocks": { "type": "section" } });
        fit(&mut odd);
        assert_eq!(odd, json!({ "text": 7, "blocks": { "type": "section" } }));
    }
}
