//! Checks of message blocks: Slack's limits, and mentions that notify a channel or a user group.

use serde_json::Value;

const BLOCKS_MAX: usize = 50;
/// Maximum length of all markdown blocks of a message, in characters.
const MARKDOWN_MAX: usize = 12_000;
const SECTION_MAX: usize = 3_000;
const FIELDS_MAX: (usize, usize) = (10, 2_000);
const HEADER_MAX: usize = 150;
const CONTEXT_MAX: usize = 10;
/// Limits of a table: rows, cells of a row, characters of all tables of a message.
const TABLE_MAX: (usize, usize, usize) = (100, 20, 10_000);

/// Checks the blocks of a message.
pub(super) fn check(blocks: &Value) -> Result<(), &'static str> {
    if blocks.is_null() {
        return Ok(());
    }
    let blocks = blocks.as_array().filter(|blocks| blocks.len() <= BLOCKS_MAX);
    let blocks = blocks.ok_or("invalid_blocks")?;
    if !blocks.iter().all(is_valid) {
        return Err("invalid_blocks");
    }
    let of = |kind: &'static str| blocks.iter().filter(move |block| block["type"] == kind);
    if of("markdown").map(|block| length(&block["text"])).sum::<usize>() > MARKDOWN_MAX {
        return Err("msg_blocks_too_long");
    }
    let table_chars: usize = of("table").map(|table| cell_chars(&table["rows"])).sum();
    if of("table").count() > 1 || table_chars > TABLE_MAX.2 {
        return Err("invalid_blocks");
    }
    Ok(())
}

fn is_valid(block: &Value) -> bool {
    let list = |name: &str| block[name].as_array().map(Vec::as_slice).unwrap_or_default();
    let within = |value: &Value, max: usize| (1..=max).contains(&length(value));
    match block["type"].as_str().unwrap_or_default() {
        "markdown" => length(&block["text"]) > 0 && !is_blank(&block["text"]),
        "section" => {
            let fields = list("fields");
            let has_text = block["text"].is_null() || within(&block["text"]["text"], SECTION_MAX);
            let has_fields = fields.iter().all(|field| within(&field["text"], FIELDS_MAX.1));
            has_text
                && has_fields
                && fields.len() <= FIELDS_MAX.0
                && !(block["text"].is_null() && fields.is_empty())
        }
        "header" => within(&block["text"]["text"], HEADER_MAX),
        "context" => (1..=CONTEXT_MAX).contains(&list("elements").len()),
        "rich_text" => is_rich_text(block),
        "table" => {
            let rows = list("rows");
            let is_row = |row: &Value| {
                row.as_array().is_some_and(|cells| {
                    (1..=TABLE_MAX.1).contains(&cells.len()) && cells.iter().all(is_cell)
                })
            };
            (1..=TABLE_MAX.0).contains(&rows.len()) && rows.iter().all(is_row)
        }
        _ => true,
    }
}

fn is_cell(cell: &Value) -> bool {
    match cell["type"].as_str() {
        Some("raw_text") => length(&cell["text"]) > 0,
        Some("rich_text") => is_rich_text(cell),
        Some("raw_number") => cell["value"].is_number(),
        _ => false,
    }
}

fn is_rich_text(block: &Value) -> bool {
    let is_element = |element: &Value| match element["type"].as_str() {
        Some("text") => length(&element["text"]) > 0,
        Some("link") => {
            let url = element["url"].as_str().unwrap_or_default();
            ["https://", "http://", "mailto:"].iter().any(|scheme| url.starts_with(scheme))
        }
        other => other.is_some(),
    };
    let sections = block["elements"].as_array().filter(|sections| !sections.is_empty());
    sections.is_some_and(|sections| {
        sections.iter().all(|section| {
            let elements = section["elements"].as_array().filter(|elements| !elements.is_empty());
            elements.is_some_and(|elements| elements.iter().all(is_element))
        })
    })
}

fn is_blank(text: &Value) -> bool {
    text.as_str().is_none_or(|text| text.trim().is_empty())
}

fn length(text: &Value) -> usize {
    text.as_str().map_or(0, |text| text.chars().count())
}

fn cell_chars(value: &Value) -> usize {
    match value {
        Value::Array(items) => items.iter().map(cell_chars).sum(),
        Value::Object(fields) => fields
            .iter()
            .map(|(name, value)| if name == "text" { length(value) } else { cell_chars(value) })
            .sum(),
        _ => 0,
    }
}

/// Returns true if a message or a part of it notifies a channel or a user group, or could do so:
/// Slack does not document the effect of mentions in Markdown.
pub fn notifies(value: &Value) -> bool {
    const MENTIONS: [&str; 8] = [
        "<!channel",
        "<!here",
        "<!everyone",
        "<!group",
        "<!subteam^",
        "@channel",
        "@here",
        "@everyone",
    ];
    match value {
        Value::String(text) => {
            let text = text.to_lowercase();
            MENTIONS.iter().any(|mention| text.contains(mention))
        }
        Value::Array(items) => items.iter().any(notifies),
        Value::Object(fields) => {
            let kind = fields.get("type").and_then(Value::as_str).unwrap_or_default();
            matches!(kind, "broadcast" | "usergroup") || fields.values().any(notifies)
        }
        _ => false,
    }
}
